// FUTEX_LOCK_PI on a mutex that another thread holds, until a time of CLOCK_REALTIME.
#include <linux/futex.h>

#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee(
      "futex", SYS_futex, -ETIMEDOUT,
      [](int64_t us) -> long {
        static uint32_t word = static_cast<uint32_t>(getpid());  // The main thread holds it.
        timespec t = timespec_of_us(now_us(CLOCK_REALTIME) + us + 1000);
        return sys_result(syscall(SYS_futex, &word, FUTEX_LOCK_PI, 0, &t, nullptr, 0));
      },
      CLOCK_REALTIME);
}
