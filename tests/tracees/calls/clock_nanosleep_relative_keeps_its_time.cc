// clock_nanosleep by a relative time, on CLOCK_MONOTONIC and CLOCK_BOOTTIME.
#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee("clock_nanosleep", SYS_clock_nanosleep, 0, [](int64_t us) -> long {
    timespec t = timespec_of_us(us / 2);
    long monotonic = sys_result(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, nullptr));
    return monotonic != 0
               ? monotonic
               : sys_result(syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &t, nullptr));
  });
}
