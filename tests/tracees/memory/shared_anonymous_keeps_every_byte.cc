// MAP_SHARED | MAP_ANONYMOUS, partly unmapped and partly protected.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t bytes = 16 * MiB;
  uint8_t* p = map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  fill(p, bytes, 7);
  need(munmap(p + 4 * MiB, 1 * MiB) == 0, "munmap");
  need(mprotect(p + 8 * MiB, 1 * MiB, PROT_READ) == 0, "mprotect");
  auto* counter = reinterpret_cast<volatile uint64_t*>(
      map(page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS));
  ready();
  uint64_t count = 0;
  for (; count % 1024 != 0 || !moved(); ++count) {
    if (!check(*counter == count, "a store was lost at %llu",
               static_cast<unsigned long long>(count)))
      break;
    *counter = count + 1;
  }
  wait_moved();
  check_filled("before the gap", p, 4 * MiB, 7);
  check_filled("after the gap", p + 5 * MiB, 11 * MiB, 7 + 5 * MiB / 8);
  check(has_vm_flag(p, "sh"), "the area isn't shared any more");
  unsigned char vec;
  check(mincore(p + 4 * MiB, page_size, &vec) == -1 && errno == ENOMEM, "the gap is mapped");
  check(!has_vm_flag(p + 8 * MiB, "wr"), "the read-only part can be written");
  return ok();
}
