// What the kernel tells of sockets that nobody has a descriptor of: sock_diag(7).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace godwit::sys {

struct TcpSocketDiag {
  // TCP_ESTABLISHED...; TCP_SYN_RECV also of those that no socket is made for yet.
  std::uint8_t state = 0;
  std::uint32_t inode = 0;  // 0: nobody's.
  // Bytes that aren't read, or connections that aren't accepted; bytes that aren't acknowledged.
  std::uint32_t waiting = 0, unacknowledged_bytes = 0;
  std::string peer;  // A sockaddr.
};

struct UnixSocketDiag {
  std::uint32_t inode = 0;    // 0: nobody has it: it waits in a backlog, or is gone.
  std::uint8_t type = 0;      // SOCK_STREAM...
  std::uint8_t state = 0;     // TCP_ESTABLISHED: connected, if it isn't of datagrams; TCP_LISTEN.
  std::uint8_t shutdown = 0;  // 1: no more reading, 2: no more writing.
  std::optional<std::uint32_t> peer;   // Its inode; 0: as above.
  std::vector<std::uint32_t> waiting;  // In a backlog: who connected, in order.
  std::uint32_t unread_bytes = 0;      // Of a listening socket: how many wait.
  std::uint32_t backlog = 0;           // Of a listening socket.
};

// Of a network namespace: the one in which it was opened.
class SockDiag {
 public:
  static Result<SockDiag> open_in(int netns);
  // IPv4 and IPv6; `states`: a bit for each. Walks the machine's whole table: about a millisecond.
  Result<std::vector<TcpSocketDiag>> tcp(std::uint32_t states);
  Result<std::vector<UnixSocketDiag>> unix_sockets();

 private:
  explicit SockDiag(UniqueFd fd) : fd_(std::move(fd)) {}
  Result<void> dump_tcp(std::uint8_t family, std::uint32_t states, std::vector<TcpSocketDiag>& out);
  UniqueFd fd_;
  std::uint32_t sequence_ = 0;
};

}  // namespace godwit::sys
