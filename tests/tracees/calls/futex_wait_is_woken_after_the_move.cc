// A wait without timeout ends by FUTEX_WAKE, not before; requeued waiters too.
#include <linux/futex.h>

#include "calls.h"
using namespace tracee;

int main() {
  static uint32_t word = 1, other = 2;
  auto futex = [](uint32_t* at, int op, uint32_t value, unsigned long count = 0,
                  uint32_t* to = nullptr) {
    return sys_result(syscall(SYS_futex, at, op, value, count, to, 0));
  };
  BlockedCall plain("FUTEX_WAIT", SYS_futex, [&] { return futex(&word, FUTEX_WAIT, 1); });
  BlockedCall requeued("requeued FUTEX_WAIT", SYS_futex,
                       [&] { return futex(&other, FUTEX_WAIT, 2); });
  need(futex(&other, FUTEX_REQUEUE, 0, 1, &word) == 1, "FUTEX_REQUEUE");
  ready();
  wait_moved();
  plain.check_still_blocked();
  requeued.check_still_blocked();
  // A requeued waiter that had to be restarted waits where it waited first: wake both places.
  same("threads woken", 2L, futex(&word, FUTEX_WAKE, 10) + futex(&other, FUTEX_WAKE, 10));
  plain.check_returns(0);
  requeued.check_returns(0);
  return ok();
}
