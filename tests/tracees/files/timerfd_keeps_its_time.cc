// timerfd: time that remains, interval, expiries not yet read, a time of day, and a thread that
// waits in read.
#include <sys/timerfd.h>

#include "calls.h"
using namespace tracee;

int main() {
  int armed = timerfd_create(CLOCK_MONOTONIC, 0),
      ticking = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK),
      idle = timerfd_create(CLOCK_REALTIME, 0), expired = timerfd_create(CLOCK_MONOTONIC, 0),
      tomorrow = timerfd_create(CLOCK_REALTIME, 0), absolute = timerfd_create(CLOCK_MONOTONIC, 0);
  constexpr long tick_ns = 1'000'000;
  const int64_t start = now_us(), start_boot = now_us(CLOCK_BOOTTIME);
  itimerspec far = {{9, 0}, {5000, 0}}, fast = {{0, tick_ns}, {0, tick_ns}},
             once = {{0, 0}, {0, 1}};
  itimerspec day = {{0, 0}, {now_us(CLOCK_REALTIME) / 1'000'000 + 86'400, 0}};
  itimerspec later = {{0, 0}, {start / 1'000'000 + 4000, 0}};
  need(timerfd_settime(armed, 0, &far, nullptr) == 0 &&
           timerfd_settime(ticking, 0, &fast, nullptr) == 0 &&
           timerfd_settime(expired, 0, &once, nullptr) == 0 &&
           timerfd_settime(tomorrow, TFD_TIMER_ABSTIME, &day, nullptr) == 0 &&
           timerfd_settime(absolute, TFD_TIMER_ABSTIME, &later, nullptr) == 0,
       "timerfd_settime");
  pollfd asked = {expired, POLLIN, 0};
  need(poll(&asked, 1, 60'000) == 1, "poll");
  uint64_t got = 0;
  BlockedCall waiting("read of a timerfd", SYS_read,
                      [&]() -> long { return sys_result(read(idle, &got, 8)); });
  ready();
  wait_moved();
  waiting.check_still_blocked();
  itimerspec now = {};
  check(timerfd_gettime(armed, &now) == 0, "timerfd_gettime: errno %d", errno);
  same("interval", 9L, now.it_interval.tv_sec);
  const int64_t passed_s = (now_us() - start) / 1'000'000;
  check(now.it_value.tv_sec >= 4998 - passed_s && now.it_value.tv_sec <= 5000, "%ld s left",
        now.it_value.tv_sec);
  check(timerfd_gettime(absolute, &now) == 0, "timerfd_gettime: errno %d", errno);
  check(now.it_value.tv_sec >= 3998 - passed_s && now.it_value.tv_sec <= 4000, "%ld s left",
        now.it_value.tv_sec);
  check(timerfd_gettime(tomorrow, &now) == 0, "timerfd_gettime: errno %d", errno);
  const int64_t until_day = day.it_value.tv_sec - now_us(CLOCK_REALTIME) / 1'000'000;
  check(labs(now.it_value.tv_sec - until_day) <= 1, "%ld s left, not %ld", now.it_value.tv_sec,
        until_day);
  uint64_t expiries = 0;
  const int64_t before_us = now_us(CLOCK_BOOTTIME);
  check(read(ticking, &expiries, 8) == 8, "read: errno %d", errno);
  // A move may lose a tick in the instant between setting the timer and setting the count.
  constexpr uint64_t lost_max = 8;
  const uint64_t most =
      static_cast<uint64_t>(now_us(CLOCK_BOOTTIME) - start_boot) * 1000 / tick_ns + 1;
  const uint64_t least = static_cast<uint64_t>(before_us - start_boot) * 1000 / tick_ns;
  check(expiries <= most, "%lu expiries, at most %lu were due", expiries, most);
  check(expiries + lost_max + least / 20 >= least, "%lu expiries, %lu were due", expiries, least);
  check(read(expired, &expiries, 8) == 8 && expiries == 1, "%lu expiries of one", expiries);
  itimerspec soon = {{0, 0}, {0, 1}};
  check(timerfd_settime(idle, 0, &soon, nullptr) == 0, "timerfd_settime: errno %d", errno);
  waiting.check_returns(8);
  same("expiries", 1, got);
  return ok();
}
