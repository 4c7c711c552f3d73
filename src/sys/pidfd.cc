#include "sys/pidfd.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys/tracee_error.h"

namespace godwit::sys {

Result<UniqueFd> open_pidfd(pid_t pid) {
  int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return tracee_error(fmt::format("pidfd_open(pid={})", pid));
  return UniqueFd(fd);
}

Result<UniqueFd> pidfd_getfd(int pidfd, int fd) {
  int copy = static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd, fd, 0));
  if (copy < 0) return tracee_error(fmt::format("pidfd_getfd(fd={})", fd));
  return UniqueFd(copy);
}

Result<void> pidfd_send_signal(int pidfd, int signal) {
  if (::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) < 0)
    return tracee_error(fmt::format("pidfd_send_signal({})", signal));
  return {};
}

bool pidfd_exited(int pidfd) {
  pollfd p{pidfd, POLLIN, 0};
  return ::poll(&p, 1, 0) == 1;
}

Result<int> kcmp(pid_t a, pid_t b, KcmpType type, std::uint64_t index_a, std::uint64_t index_b) {
  long r = ::syscall(SYS_kcmp, a, b, static_cast<int>(type), index_a, index_b);
  if (r < 0)
    return tracee_error(fmt::format("kcmp({}, {}, type={})", a, b, static_cast<int>(type)));
  return static_cast<int>(r);
}

}  // namespace godwit::sys
