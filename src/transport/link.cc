#include "transport/link.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "transport/handshake.h"
#include "transport/socket.h"

namespace godwit::transport {

Result<void> Link::send(const google::protobuf::MessageLite& message, std::int64_t timeout_ms) {
  const std::size_t size = message.ByteSizeLong();
  if (size > message_bytes_max)
    return make_error(Errc::invalid, "message of {} bytes; the limit is {}", size,
                      message_bytes_max);
  // One buffer, one send: a length alone in a packet would wait for its acknowledgement.
  std::string bytes(4 + size, '\0');
  for (std::size_t i = 0; i < 4; ++i) bytes[i] = static_cast<char>(size >> (8 * i));
  if (!message.SerializeToArray(bytes.data() + 4, static_cast<int>(size)))
    return make_error(Errc::internal, "a message doesn't serialize");
  std::lock_guard lock(*send_lock_);
  Result<void> sent = send_all(fd_.get(), std::as_bytes(std::span(bytes.data(), bytes.size())),
                               Deadline(timeout_ms));
  if (!sent.ok() && sent.error().code() == Errc::timeout) {
    // A part may have left; nothing that follows could be understood.
    shutdown();
    return make_error(Errc::peer_lost, "the peer took no message for {} ms", timeout_ms);
  }
  return sent;
}

Result<void> Link::receive(google::protobuf::MessageLite& message, std::int64_t timeout_ms) {
  const Deadline deadline(timeout_ms);
  TRY(wait_for(fd_.get(), POLLIN, deadline));
  auto rest = [&]() -> Result<void> {
    std::array<std::byte, 4> head;
    TRY(receive_all(fd_.get(), head, deadline));
    std::size_t size = 0;
    for (std::size_t i = 0; i < 4; ++i) size |= std::to_integer<std::size_t>(head[i]) << (8 * i);
    if (size > message_bytes_max)
      return make_error(Errc::invalid, "message of {} bytes; the limit is {}", size,
                        message_bytes_max);
    // Grows with what really comes: a hostile length alone costs no memory.
    constexpr std::size_t step = 4u << 20;
    std::string body;
    while (body.size() < size) {
      const std::size_t at = body.size();
      body.resize(std::min(size, at + step));
      TRY(receive_all(fd_.get(), std::as_writable_bytes(std::span(body).subspan(at)), deadline));
    }
    if (!message.ParseFromArray(body.data(), static_cast<int>(body.size())))
      return make_error(Errc::invalid, "a message of {} bytes doesn't parse", size);
    return {};
  };
  Result<void> received = rest();
  if (received.ok()) return {};
  shutdown();  // The stream has lost its rhythm, whatever happened.
  if (received.error().code() == Errc::timeout)
    return make_error(Errc::peer_lost, "a message came only in part within {} ms", timeout_ms);
  return received;
}

void Link::shutdown() {
  if (fd_.valid()) ::shutdown(fd_.get(), SHUT_RDWR);
}

namespace {
// Figures for people: a socket that can't tell counts as zero.
tcp_info info_of(int socket) {
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return {};
  return info;
}
}  // namespace

std::int64_t round_trip_us(int socket) { return info_of(socket).tcpi_rtt; }

std::uint64_t bytes_acknowledged(std::span<const int> sockets) {
  std::uint64_t sum = 0;
  for (int fd : sockets) sum += info_of(fd).tcpi_bytes_acked;
  return sum;
}

Result<Link> connect(const std::string& address, std::uint16_t port, const Token& token,
                     LinkKind kind, std::uint32_t index, const LinkOptions& options) {
  const Deadline deadline(options.connect_timeout_ms);
  Address to = TRY(numeric_address(address, port));
  auto attempt = [&]() -> Result<Link> {
    UniqueFd fd(::socket(to.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd.valid()) return os_error("socket");
    TRY(tune(fd.get(), kind, options));
    if (::connect(fd.get(), to.get(), to.size) != 0) {
      if (errno != EINPROGRESS) return socket_error("connect", errno);
      TRY(wait_for(fd.get(), POLLOUT, deadline));
      int error = 0;
      socklen_t size = sizeof error;
      if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0)
        return os_error("getsockopt(SO_ERROR)");
      if (error != 0) return socket_error("connect", error);
    }
    const Hello hello = make_hello(kind, index, random_nonce());
    TRY(send_all(fd.get(), hello, deadline));
    std::array<std::byte, challenge_bytes> challenge;
    TRY(receive_all(fd.get(), challenge, deadline));
    Nonce nonce;
    std::copy_n(challenge.begin(), nonce_bytes, nonce.begin());
    // First the target proves itself: a stranger gets no proof of ours to play with.
    if (!equal_in_constant_time(authenticate(token, target_role, hello, nonce),
                                std::span(challenge).subspan(nonce_bytes)))
      return make_error(Errc::permission, "who listens doesn't know this migration's token");
    TRY(send_all(fd.get(), authenticate(token, source_role, hello, nonce), deadline));
    std::array<std::byte, 1> answer;
    TRY(receive_all(fd.get(), answer, deadline).with("the target didn't accept the token"));
    if (answer[0] != accepted_byte)
      return make_error(Errc::permission, "the target didn't accept the token");
    // Memory's threads block in reads and writes of data streams; messages poll for themselves.
    TRY(set_blocking(fd.get()));
    return Link(std::move(fd), kind, index);
  };
  return attempt().with(
      fmt::format("link {} {} to {}:{}", static_cast<int>(kind), index, address, port));
}

}  // namespace godwit::transport
