// sigtimedwait gives EINTR when a tracer stops it; the program must not see that.
#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee("rt_sigtimedwait", SYS_rt_sigtimedwait, -EAGAIN, [](int64_t us) -> long {
    timespec t = timespec_of_us(us);
    uint64_t set = 1ULL << (SIGRTMIN + 3 - 1);
    return sys_result(syscall(SYS_rt_sigtimedwait, &set, nullptr, &t, sizeof set));
  });
}
