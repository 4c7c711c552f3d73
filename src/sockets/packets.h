// Packets that a socket of this machine shall believe to come from its peer: sent over `lo` of the
// capsule's network, where nothing asks who may send from which address.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"

namespace godwit::sockets {

// Of an address of IPv4 or IPv6.
bool has_port(const std::string& address);

struct Endpoints {
  sockaddr_storage from{}, to{};  // Of one family: AF_INET or AF_INET6.
};

// From the peer of a socket to it. An address of IPv4 in one of IPv6 is taken for what it is.
Result<Endpoints> from_peer(const std::string& local, const std::string& peer);

// An acknowledgement.
struct Segment {
  std::uint32_t sequence = 0, acknowledged = 0;
  std::uint16_t window = 0;
  bool ends = false;  // FIN
  // Echoed, by a peer that doesn't tell its own time (RFC 7323).
  std::optional<std::uint32_t> timestamp_echo;
};
Result<void> send_segment(int netns, const Endpoints& ends, const Segment& segment);

Result<void> send_datagram(int netns, const Endpoints& ends, const std::string& data);

}  // namespace godwit::sockets
