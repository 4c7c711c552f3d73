// select writes back the time that remains.
#include <sys/select.h>

#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee("select", SYS_select, 0, [](int64_t us) -> long {
    timeval t = {us / 1'000'000, us % 1'000'000};
    return sys_result(syscall(SYS_select, 0, nullptr, nullptr, nullptr, &t));
  });
}
