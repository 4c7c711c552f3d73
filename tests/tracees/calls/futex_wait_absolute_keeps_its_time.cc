// FUTEX_WAIT_BITSET until a time of CLOCK_MONOTONIC: what pthread_cond_timedwait and sem_timedwait
// use.
#include <linux/futex.h>

#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee("futex", SYS_futex, -ETIMEDOUT, [](int64_t us) -> long {
    static uint32_t word = 7;
    timespec t = timespec_of_us(now_us(CLOCK_MONOTONIC) + us + 1);
    return sys_result(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 7, &t,
                              nullptr, FUTEX_BITSET_MATCH_ANY));
  });
}
