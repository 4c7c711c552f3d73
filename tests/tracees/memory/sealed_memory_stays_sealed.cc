// mseal (6.10): the area can't be unmapped or protected otherwise.
#include "tracee.h"
using namespace tracee;

constexpr long sys_mseal = 462;

int main() {
  uint8_t* p = map(4 * page_size);
  fill(p, 4 * page_size, 8);
  if (syscall(sys_mseal, p, 4 * page_size, 0) != 0) skip("kernel without mseal: errno %d", errno);
  ready();
  wait_moved();
  check_filled("sealed", p, 4 * page_size, 8);
  check(munmap(p, page_size) == -1 && errno == EPERM, "a sealed page could be unmapped");
  check(mprotect(p, page_size, PROT_READ) == -1 && errno == EPERM,
        "a sealed page could be protected");
  return ok();
}
