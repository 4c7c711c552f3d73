#include "transport/link.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <functional>

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

std::int64_t round_trip_us(int socket) { return info_of(socket).tcpi_min_rtt; }

std::uint64_t bytes_acknowledged(std::span<const int> sockets) {
  std::uint64_t sum = 0;
  for (int fd : sockets) sum += info_of(fd).tcpi_bytes_acked;
  return sum;
}

namespace {

// The source's side of one handshake, step by step, so that those of many links can take turns.
class Dialer {
 public:
  Dialer(const Token& token, LinkKind kind, std::uint32_t index)
      : token_(token), kind_(kind), index_(index) {}

  Result<void> start(const Address& to, const LinkOptions& options) {
    fd_.reset(::socket(to.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd_.valid()) return os_error("socket");
    TRY(tune(fd_.get(), kind_, options));
    if (::connect(fd_.get(), to.get(), to.size) != 0 && errno != EINPROGRESS)
      return socket_error("connect", errno);
    return {};
  }
  Result<void> greet(const Deadline& deadline) {
    TRY(wait_for(fd_.get(), POLLOUT, deadline));
    int error = 0;
    socklen_t size = sizeof error;
    if (::getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0)
      return os_error("getsockopt(SO_ERROR)");
    if (error != 0) return socket_error("connect", error);
    hello_ = make_hello(kind_, index_, random_nonce());
    return send_all(fd_.get(), hello_, deadline);
  }
  Result<void> prove(const Deadline& deadline) {
    std::array<std::byte, challenge_bytes> challenge;
    TRY(receive_all(fd_.get(), challenge, deadline));
    Nonce nonce;
    std::copy_n(challenge.begin(), nonce_bytes, nonce.begin());
    // First the target proves itself: a stranger gets no proof of ours to play with.
    if (!equal_in_constant_time(authenticate(token_, target_role, hello_, nonce),
                                std::span(challenge).subspan(nonce_bytes)))
      return make_error(Errc::permission, "who listens doesn't know this migration's token");
    return send_all(fd_.get(), authenticate(token_, source_role, hello_, nonce), deadline);
  }
  Result<Link> finish(const Deadline& deadline) {
    std::array<std::byte, 1> answer;
    TRY(receive_all(fd_.get(), answer, deadline).with("the target didn't accept the token"));
    if (answer[0] != accepted_byte)
      return make_error(Errc::permission, "the target didn't accept the token");
    // Memory's threads block in reads and writes of data streams; messages poll for themselves.
    TRY(set_blocking(fd_.get()));
    return Link(std::move(fd_), kind_, index_);
  }
  std::string name() const { return fmt::format("link {} {}", static_cast<int>(kind_), index_); }

 private:
  const Token& token_;
  LinkKind kind_;
  std::uint32_t index_;
  UniqueFd fd_;
  Hello hello_{};
};

}  // namespace

Result<std::vector<Link>> connect_all(const std::string& address, std::uint16_t port,
                                      const Token& token, std::span<const LinkName> names,
                                      const LinkOptions& options) {
  const Deadline deadline(options.connect_timeout_ms);
  Address to = TRY(numeric_address(address, port));
  std::vector<Dialer> dialers;
  for (const LinkName& name : names) dialers.emplace_back(token, name.kind, name.index);
  std::vector<Link> links;
  // One round trip a step, however many links.
  const std::function<Result<void>(Dialer&)> steps[] = {
      [&](Dialer& d) { return d.start(to, options); },
      [&](Dialer& d) { return d.greet(deadline); },
      [&](Dialer& d) { return d.prove(deadline); },
      [&](Dialer& d) -> Result<void> {
        links.push_back(TRY(d.finish(deadline)));
        return {};
      },
  };
  for (const auto& step : steps)
    for (Dialer& dialer : dialers)
      TRY(step(dialer).with(fmt::format("{} to {}:{}", dialer.name(), address, port)));
  return links;
}

Result<Link> connect(const std::string& address, std::uint16_t port, const Token& token,
                     LinkKind kind, std::uint32_t index, const LinkOptions& options) {
  const LinkName name{kind, index};
  return std::move(TRY(connect_all(address, port, token, {&name, 1}, options)).front());
}

void warm_up() {
  const Token token{};
  (void)authenticate(token, source_role, Hello{}, Nonce{});
}

}  // namespace godwit::transport
