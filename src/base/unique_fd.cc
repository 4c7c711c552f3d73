#include "base/unique_fd.h"

#include <fcntl.h>
#include <unistd.h>

namespace godwit {

void UniqueFd::reset(int fd) {
  // close(2) releases the descriptor even when it reports an error; there is nothing to retry.
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

Result<UniqueFd> duplicate(int fd) {
  int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return os_error(fmt::format("fcntl(F_DUPFD_CLOEXEC, {})", fd));
  return UniqueFd(copy);
}

}  // namespace godwit
