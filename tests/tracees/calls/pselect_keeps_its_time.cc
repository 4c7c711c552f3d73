// pselect6 with a signal mask of its own.
#include <sys/select.h>

#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee("pselect6", SYS_pselect6, 0, [](int64_t us) -> long {
    timespec t = timespec_of_us(us);
    uint64_t mask = 1ULL << (SIGUSR1 - 1);
    struct {
      const void* mask;
      size_t bytes;
    } argument = {&mask, sizeof mask};
    return sys_result(syscall(SYS_pselect6, 0, nullptr, nullptr, nullptr, &t, &argument));
  });
}
