// FUTEX_WAIT with a relative timeout, which the kernel restarts by restart_syscall.
#include <linux/futex.h>

#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee("futex", SYS_futex, -ETIMEDOUT, [](int64_t us) -> long {
    static uint32_t word = 7;
    timespec t = timespec_of_us(us);
    return sys_result(syscall(SYS_futex, &word, FUTEX_WAIT, 7, &t, nullptr, 0));
  });
}
