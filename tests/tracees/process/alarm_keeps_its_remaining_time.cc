// A one-shot ITIMER_REAL of 1000 s: what is left of it shrinks as time goes by, no faster and no
// slower.
#include <sys/time.h>

#include "tracee.h"
using namespace tracee;

int main() {
  itimerval timer = {{0, 0}, {1000, 0}}, now = {};
  need(setitimer(ITIMER_REAL, &timer, nullptr) == 0, "setitimer");
  int64_t start = now_us();
  ready();
  wait_moved();
  check(getitimer(ITIMER_REAL, &now) == 0, "getitimer: errno %d", errno);
  int64_t left_us = now.it_value.tv_sec * 1'000'000LL + now.it_value.tv_usec,
          passed_us = now_us() - start;
  // A timer may stand still while the program does, or not: downtimes together are less than 10 s.
  check(left_us + passed_us > 1'000'000'000 - 1'000'000 && left_us + passed_us < 1'010'000'000,
        "%lld us left of 1000 s after %lld us", static_cast<long long>(left_us),
        static_cast<long long>(passed_us));
  same("interval", 0L, now.it_interval.tv_sec);
  return ok();
}
