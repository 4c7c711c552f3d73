// PR_SET_SYSCALL_USER_DISPATCH: calls from outside a range raise SIGSYS while a selector byte says
// so.
#include <sys/prctl.h>

#include "tracee.h"
using namespace tracee;

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

volatile char selector = 0;  // 0: allow, 1: block.
std::atomic<int> dispatched{0};

int main() {
  struct sigaction action = {};
  action.sa_handler = [](int) {
    selector = 0;
    ++dispatched;
  };
  need(sigaction(SIGSYS, &action, nullptr) == 0, "sigaction");
  if (prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0UL, 0UL, &selector) != 0)
    skip("no syscall user dispatch: errno %d", errno);
  ready();
  wait_moved();
  selector = 1;
  syscall(SYS_getppid);
  selector = 0;
  same("calls that were dispatched", 1, dispatched.load());
  return ok();
}
