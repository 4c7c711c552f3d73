// 60,000 areas near the kernel's limit of 65,530, each with its own data.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t areas = 60'000;
  if (atol(read_file("/proc/sys/vm/max_map_count").c_str()) < 65'000)
    skip("vm.max_map_count is below 65000");
  // Neighbours of differing protection don't merge.
  uint8_t* p = map(areas * page_size);
  for (size_t i = 0; i < areas; ++i) *reinterpret_cast<uint64_t*>(p + i * page_size) = mix(i);
  for (size_t i = 0; i < areas; i += 2)
    need(mprotect(p + i * page_size, page_size, PROT_READ) == 0, "mprotect %zu", i);
  ready();
  wait_moved();
  for (size_t i = 0; i < areas; ++i)
    if (!check(*reinterpret_cast<uint64_t*>(p + i * page_size) == mix(i), "area %zu lost its data",
               i))
      break;
  check(has_vm_flag(p + 1000 * page_size, "rd") && !has_vm_flag(p + 1000 * page_size, "wr"),
        "an even area can be written");
  check(has_vm_flag(p + 1001 * page_size, "wr"), "an odd area can't be written");
  std::string maps = read_file("/proc/self/maps");
  long lines = 0;
  for (char c : maps) lines += c == '\n';
  check(lines >= static_cast<long>(areas), "%ld areas are left", lines);
  return ok();
}
