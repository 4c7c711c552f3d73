// clock_nanosleep until a time of CLOCK_REALTIME.
#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee(
      "clock_nanosleep", SYS_clock_nanosleep, 0,
      [](int64_t us) -> long {
        timespec t = timespec_of_us(now_us(CLOCK_REALTIME) + us + 1);
        return sys_result(syscall(SYS_clock_nanosleep, CLOCK_REALTIME, TIMER_ABSTIME, &t, nullptr));
      },
      CLOCK_REALTIME);
}
