// A periodic ITIMER_REAL whose SIGALRM was ignored is never started again by the kernel: also not by a
// move, although there is a handler by then.
#include <sys/time.h>

#include "tracee.h"
using namespace tracee;

std::atomic<int> ticks{0};

int main() {
  need(signal(SIGALRM, SIG_IGN) != SIG_ERR, "signal");
  itimerval timer = {{0, 5000}, {0, 1000}};
  need(setitimer(ITIMER_REAL, &timer, nullptr) == 0, "setitimer");
  itimerval now = {};
  need(eventually([&] {
         return getitimer(ITIMER_REAL, &now) == 0 && now.it_value.tv_usec == 0;
       }),
       "ITIMER_REAL goes on without its signal");
  need(signal(SIGALRM, [](int) { ++ticks; }) != SIG_ERR, "signal");
  ready();
  wait_moved();
  same("ticks", 0, ticks.load());
  return ok();
}
