// sigsuspend waits under another mask; the old one is back when it returns.
#include "calls.h"
using namespace tracee;

std::atomic<int> first{0}, second{0};

int main() {
  signal(SIGUSR1, [](int) { ++first; });
  signal(SIGUSR2, [](int) { ++second; });
  sigset_t own, during;
  sigemptyset(&own);
  sigaddset(&own, SIGUSR1);
  sigaddset(&own, SIGUSR2);
  sigemptyset(&during);
  sigaddset(&during, SIGUSR2);
  need(pthread_sigmask(SIG_BLOCK, &own, nullptr) == 0,
       "pthread_sigmask");  // The thread inherits it.
  BlockedCall waiting("sigsuspend", SYS_rt_sigsuspend, [&]() -> long {
    long result = sys_result(syscall(SYS_rt_sigsuspend, &during, 8));
    sigset_t now;
    pthread_sigmask(SIG_BLOCK, nullptr, &now);
    check(sigismember(&now, SIGUSR1) && sigismember(&now, SIGUSR2),
          "the mask from before isn't back");
    return result;
  });
  ready();
  wait_moved();
  waiting.check_still_blocked();
  syscall(SYS_tgkill, getpid(), waiting.tid(),
          SIGUSR2);  // Blocked during the call: must not end it.
  usleep(50'000);
  waiting.check_still_blocked();
  same("handlers of the blocked signal", 0, second.load());
  syscall(SYS_tgkill, getpid(), waiting.tid(), SIGUSR1);
  waiting.check_returns(-EINTR);
  same("handlers of the signal", 1, first.load());
  return ok();
}
