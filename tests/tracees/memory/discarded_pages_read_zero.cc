// munmap + mmap at the same place, MADV_DONTNEED and MADV_REMOVE during the rounds: what was sent
// earlier must not come back.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t pages = 1024, chunk = 16;
  uint8_t* p = map(pages * page_size);
  uint8_t* shared = map(pages * page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  std::vector<uint64_t> stamp(pages), shared_stamp(pages);  // 0: must read zero.
  for (size_t i = 0; i < pages; ++i) {
    fill(p + i * page_size, page_size, stamp[i] = i + 1);
    fill(shared + i * page_size, page_size, shared_stamp[i] = i + 1);
  }
  uint64_t step = 1;
  ready();
  for (; !moved(); ++step) {
    size_t first = mix(step) % (pages / chunk) * chunk;
    uint8_t* at = p + first * page_size;
    switch (mix(step * 7) % 4) {
      case 0:
        need(madvise(at, chunk * page_size, MADV_DONTNEED) == 0, "MADV_DONTNEED");
        break;
      case 1:
        need(munmap(at, chunk * page_size) == 0, "munmap");
        map(chunk * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
            at);
        break;
      case 2:
        need(madvise(shared + first * page_size, chunk * page_size, MADV_REMOVE) == 0,
             "MADV_REMOVE");
        for (size_t i = first; i < first + chunk; ++i) shared_stamp[i] = 0;
        continue;
      default:
        for (size_t i = first; i < first + chunk; ++i) {
          fill(p + i * page_size, page_size, stamp[i] = step * pages);
          fill(shared + i * page_size, page_size, shared_stamp[i] = step * pages);
        }
        usleep(300);
        continue;
    }
    for (size_t i = first; i < first + chunk; ++i) stamp[i] = 0;
  }
  for (size_t i = 0; i < pages; ++i) {
    bool good = stamp[i] == 0 ? check_all("discarded page", p + i * page_size, page_size, 0)
                              : check_filled("page", p + i * page_size, page_size, stamp[i]);
    good &= shared_stamp[i] == 0
                ? check_all("removed shared page", shared + i * page_size, page_size, 0)
                : check_filled("shared page", shared + i * page_size, page_size, shared_stamp[i]);
    if (!good) break;
  }
  return ok();
}
