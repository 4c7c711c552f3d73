// A periodic ITIMER_REAL that has expired shows no time left, and starts again only when its signal,
// which is blocked here, is taken.
#include <sys/time.h>

#include "tracee.h"
using namespace tracee;

bool alarm_waits() {
  sigset_t pending;
  need(sigpending(&pending) == 0, "sigpending");
  return sigismember(&pending, SIGALRM) == 1;
}

int main() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGALRM);
  need(sigprocmask(SIG_BLOCK, &set, nullptr) == 0, "sigprocmask");
  itimerval timer = {{0, 5000}, {0, 5000}};
  need(setitimer(ITIMER_REAL, &timer, nullptr) == 0, "setitimer");
  need(eventually(alarm_waits), "no SIGALRM");
  ready();
  wait_moved();
  check(alarm_waits(), "the SIGALRM that waited is gone");
  itimerval now = {};
  check(getitimer(ITIMER_REAL, &now) == 0, "getitimer: errno %d", errno);
  same("interval, us", 5000, now.it_interval.tv_usec);
  int signal = 0;
  for (int i = 0; i < 3; ++i) {
    check(eventually(alarm_waits), "ITIMER_REAL stands still after %d signals", i);
    check(sigwait(&set, &signal) == 0, "sigwait: errno %d", errno);
  }
  return ok();
}
