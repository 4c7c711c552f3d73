// Processes and their descriptors by descriptor: pidfd_open(2), pidfd_getfd(2), kcmp(2).
#pragma once

#include <sys/types.h>

#include "base/unique_fd.h"

namespace godwit::sys {

// Names the process for good: unlike a pid, a pidfd cannot be reused under us.
Result<UniqueFd> open_pidfd(pid_t pid);

// Our own copy of descriptor `fd` of the process: the same open file description.
Result<UniqueFd> pidfd_getfd(int pidfd, int fd);

Result<void> pidfd_send_signal(int pidfd, int signal);

// Whether the process has ended (it may be a zombie).
bool pidfd_exited(int pidfd);

enum class KcmpType {
  file = 0,
  vm = 1,
  files = 2,
  fs = 3,
  sighand = 4,
  io = 5,
  sysvsem = 6,
  epoll_slot = 7
};

// What an epoll instance watches: index_b of `epoll_slot` is the address of one.
struct EpollSlot {
  std::uint32_t epoll_fd, fd;  // The number under which the file was added.
  std::uint32_t index;         // Among those that were added under this number.
};

// Orders kernel objects: 0 equal, 1 less, 2 greater, 3 different without order. For all but `file`
// and `epoll_slot` the indices are ignored.
Result<int> kcmp(pid_t a, pid_t b, KcmpType type, std::uint64_t index_a = 0,
                 std::uint64_t index_b = 0);

}  // namespace godwit::sys
