// futex_waitv (5.16) on three words until a time of CLOCK_MONOTONIC.
#include <linux/futex.h>

#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee("futex_waitv", SYS_futex_waitv, -ETIMEDOUT, [](int64_t us) -> long {
    static uint32_t words[3] = {1, 2, 3};
    futex_waitv waiters[3] = {};
    for (int i = 0; i < 3; ++i)
      waiters[i] = {words[i], reinterpret_cast<uintptr_t>(&words[i]), FUTEX_32, 0};
    timespec t = timespec_of_us(now_us(CLOCK_MONOTONIC) + us + 1);
    return sys_result(syscall(SYS_futex_waitv, waiters, 3, 0, &t, CLOCK_MONOTONIC));
  });
}
