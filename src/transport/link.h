// Connections of one migration between two workers: authenticated, tuned, bounded.
//
// Every connection starts with a mutual challenge-response over the migration's one-time token
// (HMAC-SHA256 of both nonces, the role and what the connection is for); the token never travels.
//
//   source                                   target
//   hello: magic, version, kind, index, Nc ->
//                                         <- challenge: Ns, HMAC(token, "target", hello, Ns)
//   proof: HMAC(token, "source", hello, Ns) ->
//                                         <- accepted: one byte
//
// Measured facts behind the settings: this project's machines default to bbr, which moves 1.4 to
// 2.1 GiB/s over veth where cubic moves 4.7 to 5.5: data sockets ask for cubic. A delayed
// acknowledgement costs 40 ms: TCP_NODELAY everywhere, no small write before a read. A cut cable
// gives no error by itself: TCP_USER_TIMEOUT and keepalives turn it into Errc::peer_lost within
// `dead_after_ms`, also while we only wait.
#pragma once

#include <google/protobuf/message_lite.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"

namespace godwit::transport {

using Token = std::array<std::byte, 32>;
Token random_token();
Result<Token> token_from_bytes(std::string_view bytes);  // Errc::invalid unless 32 bytes.

enum class LinkKind : std::uint8_t { control = 1, data = 2, urgent = 3 };

struct LinkOptions {
  // A peer is lost that doesn't answer TCP for so long, or takes no data (a closed window counts).
  std::int64_t dead_after_ms = 15'000;
  std::int64_t connect_timeout_ms = 20'000;  // Connect and handshake.
  std::uint64_t bytes_per_s_max = 0;        // Data links: pacing by the kernel; 0: none.
};

inline constexpr std::size_t message_bytes_max = 256u << 20;

class Link {
 public:
  Link() = default;
  Link(UniqueFd fd, LinkKind kind, std::uint32_t index)
      : fd_(std::move(fd)),
        kind_(kind),
        index_(index),
        send_lock_(std::make_unique<std::mutex>()) {}

  bool valid() const { return fd_.valid(); }
  int fd() const { return fd_.get(); }  // For data and urgent links: memory's streams.
  LinkKind kind() const { return kind_; }
  std::uint32_t index() const { return index_; }  // Number of a data stream, from 0.

  // Control links. A message is a u32 little-endian length and the protobuf. Sending from several
  // threads is safe; one thread receives. A lost peer is Errc::peer_lost, a silent one
  // Errc::timeout (the link is still good then if no part of a message had come; else peer_lost).
  Result<void> send(const google::protobuf::MessageLite& message, std::int64_t timeout_ms = 30'000);
  Result<void> receive(google::protobuf::MessageLite& message, std::int64_t timeout_ms);

  // Both directions, from any thread: whoever waits, here or there, gets Errc::peer_lost at once.
  void shutdown();

 private:
  UniqueFd fd_;
  LinkKind kind_ = LinkKind::control;
  std::uint32_t index_ = 0;
  std::unique_ptr<std::mutex> send_lock_;
};

// As TCP has measured it on this socket; 0 if it can't tell. Any thread.
std::int64_t round_trip_us(int socket);
// Bytes that the peer's TCP has acknowledged on these sockets, all together. Any thread.
std::uint64_t bytes_acknowledged(std::span<const int> sockets);

struct LinkName {
  LinkKind kind;
  std::uint32_t index;
};
// In the time that one takes: four round trips. In the order of `names`.
Result<std::vector<Link>> connect_all(const std::string& address, std::uint16_t port,
                                      const Token& token, std::span<const LinkName> names,
                                      const LinkOptions& options);
// What the first handshake of a process costs beyond all others (libcrypto's initialization, 1 ms).
void warm_up();

Result<Link> connect(const std::string& address, std::uint16_t port, const Token& token,
                     LinkKind kind, std::uint32_t index, const LinkOptions& options);

// Accepts connections that prove the token. Strangers cost nothing: up to `strangers_max`
// handshakes go on side by side, each with a time limit, none blocks another.
class Listener {
 public:
  static constexpr std::size_t strangers_max = 32;
  static constexpr std::int64_t handshake_ms_max = 10'000;

  // `address` is numeric, IPv4 or IPv6; port 0 takes a free one.
  static Result<Listener> open(const std::string& address, std::uint16_t port, const Token& token,
                               const LinkOptions& options);
  Listener(Listener&&) noexcept;
  Listener& operator=(Listener&&) noexcept;
  ~Listener();

  std::uint16_t port() const;
  int fd() const;
  // The next connection whose handshake succeeded, of whatever kind. Errc::timeout if none came.
  Result<Link> accept(std::int64_t timeout_ms);

 private:
  struct Impl;
  explicit Listener(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace godwit::transport
