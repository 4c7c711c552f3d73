#include "migrate/worker_channel.h"

#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <string>

#include "base/io.h"

namespace godwit::migrate {

Result<void> WorkerChannel::send(const google::protobuf::MessageLite& message) {
  std::string out(sizeof(std::uint32_t), '\0');
  if (!message.AppendToString(&out))
    return make_error(Errc::internal, "cannot serialize {}", message.GetTypeName());
  auto length = static_cast<std::uint32_t>(out.size() - sizeof(std::uint32_t));
  std::memcpy(out.data(), &length, sizeof length);
  std::string_view rest = out;
  while (!rest.empty()) {
    // MSG_NOSIGNAL: a worker outlives its daemon, SIGPIPE must not end it.
    ssize_t n = ::send(fd_.get(), rest.data(), rest.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
      return make_error(Errc::peer_lost, "the other end of the worker channel is gone");
    if (n < 0) return os_error(fmt::format("send(fd={}, {})", fd_.get(), rest.size()));
    rest.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

Result<void> WorkerChannel::receive(google::protobuf::MessageLite& message,
                                    std::int64_t timeout_ms) {
  pollfd ready{.fd = fd_.get(), .events = POLLIN, .revents = 0};
  int n;
  do n = ::poll(&ready, 1, static_cast<int>(timeout_ms));
  while (n < 0 && errno == EINTR);
  if (n < 0) return os_error(fmt::format("poll(fd={})", fd_.get()));
  if (n == 0) return make_error(Errc::timeout, "no message within {} ms", timeout_ms);
  std::uint32_t length = 0;
  TRY(read_full(fd_.get(), std::as_writable_bytes(std::span(&length, 1))));
  if (length > message_bytes_max)
    return make_error(Errc::invalid, "message of {} bytes, {} at most", length, message_bytes_max);
  std::string in(length, '\0');
  TRY(read_full(fd_.get(), std::as_writable_bytes(std::span(in.data(), in.size()))));
  if (!message.ParseFromString(in))
    return make_error(Errc::invalid, "malformed {}", message.GetTypeName());
  return {};
}

}  // namespace godwit::migrate
