// nanosleep without rmtp: the remaining time is kept in the kernel only.
#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee("nanosleep", SYS_nanosleep, 0, [](int64_t us) -> long {
    timespec t = timespec_of_us(us);
    return sys_result(syscall(SYS_nanosleep, &t, nullptr));
  });
}
