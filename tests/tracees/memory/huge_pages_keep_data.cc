// Transparent huge pages with MADV_HUGEPAGE: data, partly discarded pages, and the flags.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t bytes = 32 * MiB, huge = 2 * MiB;
  uint8_t* raw = map(bytes + huge);
  auto* p = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + huge - 1) & ~(huge - 1));
  if (madvise(p, bytes, MADV_HUGEPAGE) != 0) skip("no transparent huge pages: errno %d", errno);
  fill(p, bytes, 31);
  need(madvise(p + 4 * huge, 3 * page_size, MADV_DONTNEED) == 0, "MADV_DONTNEED");
  std::atomic<uint64_t> rounds{0};
  Background writer([&](std::atomic<bool>& stop) {
    while (!stop) {
      ++rounds;
      for (size_t at = 0; at < 2 * huge; at += 64 * KiB)
        *reinterpret_cast<uint64_t*>(p + at) = rounds;
      usleep(500);
    }
  });
  ready();
  wait_moved();
  writer.finish();
  for (size_t at = 0; at < 2 * huge; at += 64 * KiB) {
    if (!check(*reinterpret_cast<uint64_t*>(p + at) == rounds, "stamp at %zu is old", at)) break;
    if (!check_filled("between the stamps", p + at + 8, 64 * KiB - 8, 31 + at / 8 + 1)) break;
  }
  check_filled("idle huge pages", p + 2 * huge, 2 * huge, 31 + 2 * huge / 8);
  check_all("discarded pages", p + 4 * huge, 3 * page_size, 0);
  check_filled("rest of a split page", p + 4 * huge + 3 * page_size,
               bytes - 4 * huge - 3 * page_size, 31 + (4 * huge + 3 * page_size) / 8);
  check(has_vm_flag(p, "hg"), "MADV_HUGEPAGE is forgotten");
  return ok();
}
