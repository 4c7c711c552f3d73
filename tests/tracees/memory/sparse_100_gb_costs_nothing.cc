// A reservation of 100 GB with three pages in it.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t bytes = 100 * GiB;
  uint8_t* p = map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  uint8_t* none = map(bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  need(madvise(p, bytes, MADV_NOHUGEPAGE) == 0, "MADV_NOHUGEPAGE");
  const size_t used[] = {0, bytes / 2, bytes - page_size};
  for (size_t at : used) fill(p + at, page_size, at);
  ready();
  wait_moved();
  for (size_t at : used) check_filled("page", p + at, page_size, at);
  check(smaps_kb(p, "Rss") <= 64, "%ld KiB are resident", smaps_kb(p, "Rss"));
  same("resident part of PROT_NONE", 0L, smaps_kb(none, "Rss"));
  same("size, KiB", static_cast<long>(bytes / KiB), smaps_kb(p, "Size"));
  same("page next to a used one", 0, p[page_size]);
  // Page tables of a wholly touched reservation would be 200 MB.
  check(atol(status_field("VmPTE").c_str()) < 20'000, "page tables take %s",
        status_field("VmPTE").c_str());
  return ok();
}
