// signalfd.
#include <sys/signalfd.h>

#include "calls.h"
using namespace tracee;

int main() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 4);
  need(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0, "pthread_sigmask");
  int fd = signalfd(-1, &set, 0);
  need(fd >= 0, "signalfd");
  signalfd_siginfo info = {};
  BlockedCall waiting("read of a signalfd", SYS_read,
                      [&]() -> long { return sys_result(read(fd, &info, sizeof info)); });
  ready();
  wait_moved();
  waiting.check_still_blocked();
  check(sigqueue(getpid(), SIGRTMIN + 4, {.sival_int = 9}) == 0, "sigqueue: errno %d", errno);
  waiting.check_returns(sizeof info);
  same("signal", SIGRTMIN + 4, info.ssi_signo);
  same("value", 9, info.ssi_int);
  return ok();
}
