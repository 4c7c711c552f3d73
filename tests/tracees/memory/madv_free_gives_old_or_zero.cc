// After MADV_FREE a page holds its old data or zeros, nothing else; written again it stays.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t pages = 512;
  uint8_t* p = map(pages * page_size);
  for (size_t i = 0; i < pages; ++i) fill(p + i * page_size, page_size, i);
  need(madvise(p, pages * page_size, MADV_FREE) == 0, "MADV_FREE");
  for (size_t i = 0; i < pages; i += 4) fill(p + i * page_size, page_size, 10'000 + i);
  ready();
  wait_moved();
  for (size_t i = 0; i < pages; ++i) {
    uint8_t* at = p + i * page_size;
    if (i % 4 == 0) {
      if (!check_filled("page written after MADV_FREE", at, page_size, 10'000 + i)) break;
    } else if (*reinterpret_cast<uint64_t*>(at) != mix(i)) {
      if (!check_all("freed page", at, page_size, 0)) break;
    } else if (!check_filled("freed page", at, page_size, i)) {
      break;
    }
  }
  return ok();
}
