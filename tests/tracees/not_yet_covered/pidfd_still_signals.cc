// A pidfd of oneself.
#include "tracee.h"
using namespace tracee;

int main() {
  int fd = static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0));
  need(fd >= 0, "pidfd_open");
  ready();
  wait_moved();
  check(syscall(SYS_pidfd_send_signal, fd, 0, nullptr, 0) == 0, "pidfd_send_signal: errno %d",
        errno);
  return ok();
}
