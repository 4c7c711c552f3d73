// sigwaitinfo without a timeout gets a queued signal with its value, after the move.
#include "calls.h"
using namespace tracee;

int main() {
  int signal = SIGRTMIN + 5;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  need(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0, "pthread_sigmask");
  BlockedCall waiting("sigwaitinfo", SYS_rt_sigtimedwait, [&]() -> long {
    siginfo_t info = {};
    long result = sys_result(syscall(SYS_rt_sigtimedwait, &set, &info, nullptr, 8));
    same("si_code", SI_QUEUE, info.si_code);
    same("value", 4711, info.si_value.sival_int);
    same("si_pid", getpid(), info.si_pid);
    return result;
  });
  ready();
  wait_moved();
  waiting.check_still_blocked();
  check(sigqueue(getpid(), signal, {.sival_int = 4711}) == 0, "sigqueue: errno %d", errno);
  waiting.check_returns(signal);
  return ok();
}
