// MADV_GUARD_INSTALL (6.13) makes guard pages without an area of their own.
#include <setjmp.h>

#include "tracee.h"
using namespace tracee;

constexpr int madv_guard_install = 102, madv_guard_remove = 103;
sigjmp_buf back;

bool faults(volatile uint8_t* p) {
  if (sigsetjmp(back, 1) != 0) return true;
  (void)*p;
  return false;
}

int main() {
  uint8_t* p = map(16 * page_size);
  fill(p, 16 * page_size, 6);
  if (madvise(p + 4 * page_size, 2 * page_size, madv_guard_install) != 0)
    skip("kernel without MADV_GUARD_INSTALL");
  signal(SIGSEGV, [](int) { siglongjmp(back, 1); });
  need(faults(p + 4 * page_size) && faults(p + 6 * page_size - 1), "guards don't fault");
  ready();
  wait_moved();
  check(faults(p + 4 * page_size) && faults(p + 6 * page_size - 1),
        "a guard page doesn't fault any more");
  check_filled("before the guards", p, 4 * page_size, 6);
  check_filled("after the guards", p + 6 * page_size, 10 * page_size, 6 + 6 * page_size / 8);
  check(madvise(p + 4 * page_size, 2 * page_size, madv_guard_remove) == 0,
        "MADV_GUARD_REMOVE: errno %d", errno);
  check_all("pages of a removed guard", p + 4 * page_size, 2 * page_size, 0);
  return ok();
}
