// ITIMER_VIRTUAL and ITIMER_PROF count consumed processor time.
#include <sys/time.h>

#include "tracee.h"
using namespace tracee;

std::atomic<uint64_t> virtual_ticks{0}, prof_ticks{0};

int main() {
  struct sigaction action = {};
  action.sa_flags = SA_RESTART;
  action.sa_handler = [](int) { ++virtual_ticks; };
  need(sigaction(SIGVTALRM, &action, nullptr) == 0, "sigaction");
  action.sa_handler = [](int) { ++prof_ticks; };
  need(sigaction(SIGPROF, &action, nullptr) == 0, "sigaction");
  itimerval timer = {{0, 8000}, {0, 8000}};
  need(setitimer(ITIMER_VIRTUAL, &timer, nullptr) == 0 &&
           setitimer(ITIMER_PROF, &timer, nullptr) == 0,
       "setitimer");
  Background burner([](std::atomic<bool>& stop) {
    while (!stop) {
      for (int i = 0; i < 100'000; ++i) asm volatile("");
      usleep(500);
    }
  });
  ready();
  wait_moved();
  uint64_t v = virtual_ticks, p = prof_ticks;
  check(eventually([&] { return virtual_ticks > v + 3; }), "ITIMER_VIRTUAL stands still");
  check(eventually([&] { return prof_ticks > p + 3; }), "ITIMER_PROF stands still");
  itimerval now = {};
  for (auto which : {ITIMER_VIRTUAL, ITIMER_PROF}) {
    check(getitimer(which, &now) == 0, "getitimer: errno %d", errno);
    // Kept in the kernel's ticks: may be rounded up to a tick of 10 ms.
    check(now.it_interval.tv_usec >= 8000 && now.it_interval.tv_usec <= 20'000,
          "the interval is %ld us", now.it_interval.tv_usec);
  }
  return ok();
}
