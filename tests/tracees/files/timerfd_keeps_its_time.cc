// timerfd: time that remains, interval, expiries not yet read, and a thread that waits in read.
#include <sys/timerfd.h>

#include "calls.h"
using namespace tracee;

int main() {
  int armed = timerfd_create(CLOCK_MONOTONIC, 0),
      ticking = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK),
      idle = timerfd_create(CLOCK_REALTIME, 0);
  itimerspec far = {{9, 0}, {5000, 0}}, fast = {{0, 1'000'000}, {0, 1'000'000}};
  need(timerfd_settime(armed, 0, &far, nullptr) == 0 &&
           timerfd_settime(ticking, 0, &fast, nullptr) == 0,
       "timerfd_settime");
  int64_t start = now_us();
  uint64_t got = 0;
  BlockedCall waiting("read of a timerfd", SYS_read,
                      [&]() -> long { return sys_result(read(idle, &got, 8)); });
  ready();
  wait_moved();
  waiting.check_still_blocked();
  itimerspec now = {};
  check(timerfd_gettime(armed, &now) == 0, "timerfd_gettime: errno %d", errno);
  same("interval", 9L, now.it_interval.tv_sec);
  check(now.it_value.tv_sec > 4990 - (now_us() - start) / 1'000'000 && now.it_value.tv_sec <= 5000,
        "%ld s left", now.it_value.tv_sec);
  uint64_t expiries = 0;
  check(read(ticking, &expiries, 8) == 8, "read: errno %d", errno);
  check(expiries >= 1 && expiries <= static_cast<uint64_t>(now_us() - start) / 1000 + 1,
        "%lu expiries", expiries);
  itimerspec soon = {{0, 0}, {0, 1}};
  check(timerfd_settime(idle, 0, &soon, nullptr) == 0, "timerfd_settime: errno %d", errno);
  waiting.check_returns(8);
  same("expiries", 1, got);
  return ok();
}
