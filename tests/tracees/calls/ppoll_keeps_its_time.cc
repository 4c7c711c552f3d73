// ppoll writes back the time that remains, and changes the signal mask while it waits.
#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee("ppoll", SYS_ppoll, 0, [](int64_t us) -> long {
    timespec t = timespec_of_us(us);
    uint64_t mask = 1ULL << (SIGUSR1 - 1);
    long result = sys_result(syscall(SYS_ppoll, nullptr, 0, &t, &mask, sizeof mask));
    check(t.tv_sec == 0 && t.tv_nsec == 0, "%ld.%09ld s remain after a timeout", t.tv_sec,
          t.tv_nsec);
    sigset_t now;
    pthread_sigmask(SIG_BLOCK, nullptr, &now);
    check(!sigismember(&now, SIGUSR1), "the mask of ppoll stayed");
    return result;
  });
}
