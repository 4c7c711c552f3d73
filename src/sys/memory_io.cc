#include "sys/memory_io.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/io.h"

namespace godwit::sys {
namespace {

Error vm_error(const char* call, pid_t pid, std::span<const RemoteRange> ranges, int sys_errno) {
  Error error = os_error(fmt::format("{}(pid={}, {:#x}, {} ranges)", call, pid,
                                     ranges.empty() ? 0 : ranges[0].address, ranges.size()),
                         sys_errno);
  if (sys_errno == ESRCH) return Error(Errc::tracee_gone, error.what(), sys_errno);
  return error;
}

std::size_t to_iovecs(std::span<const RemoteRange> ranges, std::array<iovec, iovecs_max>& out) {
  INVARIANT(ranges.size() <= iovecs_max, "{} ranges", ranges.size());
  for (std::size_t i = 0; i < ranges.size(); ++i)
    out[i] = {.iov_base = reinterpret_cast<void*>(ranges[i].address), .iov_len = ranges[i].bytes};
  return ranges.size();
}

Error stream_error(const char* call, int sys_errno) {
  switch (sys_errno) {
    case EPIPE:
    case ECONNRESET:
    case ECONNABORTED:
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

}  // namespace

Result<std::uint64_t> vm_read(pid_t pid, std::span<std::byte> into,
                              std::span<const RemoteRange> from) {
  std::array<iovec, iovecs_max> remote;
  const std::size_t count = to_iovecs(from, remote);
  iovec local{.iov_base = into.data(), .iov_len = into.size()};
  const ssize_t n = ::process_vm_readv(pid, &local, 1, remote.data(), count, 0);
  if (n < 0) return vm_error("process_vm_readv", pid, from, errno);
  return static_cast<std::uint64_t>(n);
}

Result<std::uint64_t> vm_write(pid_t pid, std::span<const iovec> from,
                               std::span<const RemoteRange> to) {
  std::array<iovec, iovecs_max> remote;
  const std::size_t count = to_iovecs(to, remote);
  INVARIANT(from.size() <= iovecs_max, "{} pieces", from.size());
  const ssize_t n = ::process_vm_writev(pid, from.data(), from.size(), remote.data(), count, 0);
  if (n < 0) return vm_error("process_vm_writev", pid, to, errno);
  return static_cast<std::uint64_t>(n);
}

Result<UniqueFd> open_mem(pid_t pid, bool write) {
  return open_fd(fmt::format("/proc/{}/mem", pid), write ? O_RDWR : O_RDONLY);
}

Result<void> mem_read(int mem_fd, std::uint64_t address, std::span<std::byte> into) {
  while (!into.empty()) {
    const ssize_t n = ::pread(mem_fd, into.data(), into.size(), static_cast<off_t>(address));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return os_error(fmt::format("pread(mem, {:#x}, {})", address, into.size()));
    if (n == 0)
      return make_error(Errc::tracee_gone, "pread(mem, {:#x}): no address space", address);
    address += static_cast<std::uint64_t>(n);
    into = into.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Result<void> mem_write(int mem_fd, std::uint64_t address, std::span<const std::byte> from) {
  while (!from.empty()) {
    const ssize_t n = ::pwrite(mem_fd, from.data(), from.size(), static_cast<off_t>(address));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return os_error(fmt::format("pwrite(mem, {:#x}, {})", address, from.size()));
    if (n == 0)
      return make_error(Errc::tracee_gone, "pwrite(mem, {:#x}): no address space", address);
    address += static_cast<std::uint64_t>(n);
    from = from.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

void shut_down(int fd) { ::shutdown(fd, SHUT_RDWR); }

Result<void> send_vector(int fd, std::span<iovec> iovecs) {
  while (!iovecs.empty()) {
    msghdr message{};
    message.msg_iov = iovecs.data();
    message.msg_iovlen = std::min(iovecs.size(), iovecs_max);
    ssize_t n = ::sendmsg(fd, &message, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return stream_error("sendmsg", errno);
    auto left = static_cast<std::size_t>(n);
    while (!iovecs.empty() && left >= iovecs[0].iov_len) {
      left -= iovecs[0].iov_len;
      iovecs = iovecs.subspan(1);
    }
    if (left > 0) {
      iovecs[0].iov_base = static_cast<std::byte*>(iovecs[0].iov_base) + left;
      iovecs[0].iov_len -= left;
    }
  }
  return {};
}

Result<std::size_t> receive_some(int fd, std::span<std::byte> into, std::size_t least) {
  std::size_t have = 0;
  while (have < least) {
    const ssize_t n = ::recv(fd, into.data() + have, into.size() - have, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return stream_error("recv", errno);
    if (n == 0) return make_error(Errc::peer_lost, "the peer has closed the stream");
    have += static_cast<std::size_t>(n);
  }
  return have;
}

Result<void> receive_exact(int fd, std::span<std::byte> into) {
  TRY(receive_some(fd, into, into.size()));
  return {};
}

Result<std::size_t> receive_available(int fd, std::span<std::byte> into) {
  while (true) {
    const ssize_t n = ::recv(fd, into.data(), into.size(), MSG_DONTWAIT);
    if (n > 0) return static_cast<std::size_t>(n);
    if (n == 0) return make_error(Errc::peer_lost, "the peer has closed the stream");
    if (errno == EAGAIN) return std::size_t{0};
    if (errno != EINTR) return stream_error("recv", errno);
  }
}

void shutdown_socket(int fd) { ::shutdown(fd, SHUT_RDWR); }

Result<bool> wait_readable(int fd, std::int64_t timeout_ms) {
  pollfd p{.fd = fd, .events = POLLIN, .revents = 0};
  while (true) {
    const int n = ::poll(&p, 1, static_cast<int>(std::clamp<std::int64_t>(timeout_ms, 0, 1 << 30)));
    if (n >= 0) return n > 0;
    if (errno != EINTR) return os_error("poll");
  }
}

}  // namespace godwit::sys
