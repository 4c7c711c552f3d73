// PR_SET_MDWE (6.3): no new executable memory that was writable.
#include "tracee.h"
using namespace tracee;

constexpr int pr_set_mdwe = 65, pr_get_mdwe = 66;
constexpr unsigned long refuse_exec_gain = 1;

int main() {
  if (prctl(pr_set_mdwe, refuse_exec_gain, 0UL, 0UL, 0UL) != 0) skip("no MDWE: errno %d", errno);
  ready();
  wait_moved();
  same("MDWE", refuse_exec_gain,
       static_cast<unsigned long>(prctl(pr_get_mdwe, 0UL, 0UL, 0UL, 0UL)));
  uint8_t* p = map(page_size);
  check(mprotect(p, page_size, PROT_READ | PROT_EXEC) == -1 && errno == EACCES,
        "memory could be made executable");
  return ok();
}
