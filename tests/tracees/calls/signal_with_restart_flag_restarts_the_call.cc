// SA_RESTART: a futex wait goes on after a handler that ran after the move; without the flag it
// gives EINTR.
#include <linux/futex.h>

#include "calls.h"
using namespace tracee;

std::atomic<int> handled{0};

int main() {
  struct sigaction action = {};
  action.sa_handler = [](int) { ++handled; };
  action.sa_flags = SA_RESTART;
  need(sigaction(SIGUSR1, &action, nullptr) == 0, "sigaction");
  catch_quietly(SIGUSR2);
  static uint32_t word = 1;
  BlockedCall waiting("FUTEX_WAIT", SYS_futex, []() -> long {
    return sys_result(syscall(SYS_futex, &word, FUTEX_WAIT, 1, nullptr, nullptr, 0));
  });
  ready();
  wait_moved();
  waiting.check_still_blocked();
  syscall(SYS_tgkill, getpid(), waiting.tid(), SIGUSR1);
  check(eventually([] { return handled == 1; }), "the handler didn't run");
  waiting.check_still_blocked();
  syscall(SYS_tgkill, getpid(), waiting.tid(), SIGUSR2);
  waiting.check_returns(-EINTR);
  return ok();
}
