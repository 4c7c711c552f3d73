#include "transport/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"

namespace godwit::transport {

Result<Address> numeric_address(const std::string& text, std::uint16_t port) {
  Address address;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&address.storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
  if (::inet_pton(AF_INET, text.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    address.size = sizeof *v4;
  } else if (::inet_pton(AF_INET6, text.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    address.size = sizeof *v6;
  } else {
    return make_error(Errc::invalid, "'{}' is not a numeric address", text);
  }
  return address;
}

Deadline::Deadline(std::int64_t timeout_ms)
    : end_ns_(monotonic_ns() + std::max<std::int64_t>(timeout_ms, 0) * 1'000'000) {}

int Deadline::left_ms() const {
  std::int64_t left = end_ns_ - monotonic_ns();
  if (left <= 0) return 0;
  return static_cast<int>(std::min<std::int64_t>((left + 999'999) / 1'000'000, 1'000'000'000));
}

Result<void> wait_for(int fd, short events, const Deadline& deadline) {
  while (true) {
    pollfd p{.fd = fd, .events = events, .revents = 0};
    int n = ::poll(&p, 1, deadline.left_ms());
    if (n > 0) return {};  // Errors and hangups too: the next call on the socket tells them.
    if (n == 0) return make_error(Errc::timeout, "nothing came in time");
    if (errno != EINTR) return os_error("poll");
  }
}

Error socket_error(const char* call, int sys_errno) {
  switch (sys_errno) {
    case EPIPE:
    case ECONNRESET:
    case ECONNABORTED:
    case ECONNREFUSED:
    case ENOTCONN:
    case ETIMEDOUT:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENETDOWN:
      return Error(Errc::peer_lost, fmt::format("{}: {}", call, std::strerror(sys_errno)),
                   sys_errno);
    default:
      return os_error(call, sys_errno);
  }
}

Result<void> send_all(int fd, std::span<const std::byte> data, const Deadline& deadline) {
  while (!data.empty()) {
    ssize_t n = ::send(fd, data.data(), data.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) {
      data = data.subspan(static_cast<std::size_t>(n));
    } else if (errno == EAGAIN) {
      TRY(wait_for(fd, POLLOUT, deadline).with("send"));
    } else if (errno != EINTR) {
      return socket_error("send", errno);
    }
  }
  return {};
}

Result<void> receive_all(int fd, std::span<std::byte> out, const Deadline& deadline) {
  while (!out.empty()) {
    ssize_t n = ::recv(fd, out.data(), out.size(), MSG_DONTWAIT);
    if (n > 0) {
      out = out.subspan(static_cast<std::size_t>(n));
    } else if (n == 0) {
      return make_error(Errc::peer_lost, "receive: the peer has closed the link");
    } else if (errno == EAGAIN) {
      TRY(wait_for(fd, POLLIN, deadline).with("receive"));
    } else if (errno != EINTR) {
      return socket_error("receive", errno);
    }
  }
  return {};
}

Result<void> set_blocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) != 0) return os_error("fcntl");
  return {};
}

namespace {

Result<void> set_int(int fd, int level, int option, const char* name, int value) {
  if (::setsockopt(fd, level, option, &value, sizeof value) != 0)
    return os_error(fmt::format("setsockopt({}={})", name, value));
  return {};
}

}  // namespace

Result<void> tune(int fd, LinkKind kind, const LinkOptions& options) {
  const int dead_ms =
      static_cast<int>(std::clamp<std::int64_t>(options.dead_after_ms, 1'000, 600'000));
  TRY(set_int(fd, IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY", 1));
  // Unacknowledged data, and a window that stays closed, end the connection after this long...
  TRY(set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT", dead_ms));
  // ... and so does silence when there is nothing to send.
  const int step_s = std::max(1, dead_ms / 4'000);
  TRY(set_int(fd, SOL_SOCKET, SO_KEEPALIVE, "SO_KEEPALIVE", 1));
  TRY(set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, "TCP_KEEPIDLE", step_s));
  TRY(set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, "TCP_KEEPINTVL", step_s));
  TRY(set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, "TCP_KEEPCNT", 3));
  // Cubic is always built in on Debian; where it isn't, the default is what there is.
  if (::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5) != 0 && errno != ENOENT &&
      errno != EPERM)
    return os_error("setsockopt(TCP_CONGESTION=cubic)");
  if (kind == LinkKind::data && options.bytes_per_s_max != 0 &&
      ::setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &options.bytes_per_s_max,
                   sizeof options.bytes_per_s_max) != 0)
    return os_error(fmt::format("setsockopt(SO_MAX_PACING_RATE={})", options.bytes_per_s_max));
  return {};
}

}  // namespace godwit::transport
