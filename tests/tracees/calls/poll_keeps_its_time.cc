// poll with a timeout and nothing that is ready; restarted by restart_syscall.
#include "calls.h"
using namespace tracee;

int main() {
  return timed_call_tracee("poll", SYS_poll, 0, [](int64_t us) -> long {
    pollfd fds[2] = {{-1, POLLIN, 0}, {-1, POLLOUT, 0}};
    return sys_result(syscall(SYS_poll, fds, 2, us / 1000));
  });
}
