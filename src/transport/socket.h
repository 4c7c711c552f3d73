// Sockets as links use them: tuned, and every wait with a deadline.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "transport/link.h"

namespace godwit::transport {

struct Address {
  sockaddr_storage storage{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

Result<Address> numeric_address(const std::string& text, std::uint16_t port);

// Monotonic; what is past counts as now.
class Deadline {
 public:
  explicit Deadline(std::int64_t timeout_ms);
  int left_ms() const;  // As poll(2) takes it: rounded up, never negative.
  bool past() const { return left_ms() == 0; }

 private:
  std::int64_t end_ns_;
};

// Errc::timeout when nothing became ready in time.
Result<void> wait_for(int fd, short events, const Deadline& deadline);
// Errc::peer_lost for whatever says that the other side is gone.
Error socket_error(const char* call, int sys_errno);

Result<void> send_all(int fd, std::span<const std::byte> data, const Deadline& deadline);
// The end of the stream before `out` is full is Errc::peer_lost.
Result<void> receive_all(int fd, std::span<std::byte> out, const Deadline& deadline);

Result<void> set_blocking(int fd);

// Before connect or listen, since the congestion control of a listener is inherited.
Result<void> tune(int fd, LinkKind kind, const LinkOptions& options);

}  // namespace godwit::transport
