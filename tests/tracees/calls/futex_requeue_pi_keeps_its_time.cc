// FUTEX_WAIT_REQUEUE_PI until a time: what waiting on a condition variable with a
// priority-inheritance mutex was in older C libraries.
#include <linux/futex.h>

#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee("futex", SYS_futex, -ETIMEDOUT, [](int64_t us) -> long {
    static uint32_t word = 7, mutex = 0;
    timespec t = timespec_of_us(now_us() + us + 1000);
    return sys_result(syscall(SYS_futex, &word, FUTEX_WAIT_REQUEUE_PI, 7, &t, &mutex, 0));
  });
}
