// ITIMER_REAL with an interval while being moved; ITIMER_REAL's remaining time of a long timer.
#include <sys/time.h>

#include "tracee.h"
using namespace tracee;

std::atomic<uint64_t> ticks{0};

int main() {
  struct sigaction action = {};
  action.sa_handler = [](int) { ++ticks; };
  action.sa_flags = SA_RESTART;
  need(sigaction(SIGALRM, &action, nullptr) == 0, "sigaction");
  itimerval timer = {{0, 5000}, {0, 5000}};
  need(setitimer(ITIMER_REAL, &timer, nullptr) == 0, "setitimer");
  ready();
  wait_moved();
  uint64_t before = ticks;
  check(eventually([&] { return ticks > before + 10; }), "ITIMER_REAL stands still");
  itimerval now = {};
  check(getitimer(ITIMER_REAL, &now) == 0, "getitimer: errno %d", errno);
  same("interval, us", 5000, now.it_interval.tv_usec);
  return ok();
}
