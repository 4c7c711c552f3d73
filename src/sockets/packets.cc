#include "sockets/packets.h"

#include <arpa/inet.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/udp.h>

#include <cstring>

#include "sys/namespaces.h"

namespace godwit::sockets {
namespace {

constexpr std::uint8_t hops = 64;
constexpr std::uint8_t option_nothing = 1, option_timestamp = 8;

void add_to_sum(std::uint64_t& sum, const void* data, std::size_t bytes) {
  const auto* at = static_cast<const std::uint8_t*>(data);
  for (std::size_t i = 0; i + 1 < bytes; i += 2)
    sum += static_cast<std::uint64_t>(at[i] << 8 | at[i + 1]);
  if (bytes % 2 != 0) sum += static_cast<std::uint64_t>(at[bytes - 1]) << 8;
}

std::uint16_t folded(std::uint64_t sum) {
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return htons(static_cast<std::uint16_t>(~sum));
}

const sockaddr_in& v4(const sockaddr_storage& address) {
  return reinterpret_cast<const sockaddr_in&>(address);
}
const sockaddr_in6& v6(const sockaddr_storage& address) {
  return reinterpret_cast<const sockaddr_in6&>(address);
}

std::uint16_t port(const sockaddr_storage& address) {  // In network byte order.
  return address.ss_family == AF_INET ? v4(address).sin_port : v6(address).sin6_port;
}

// RFC 9293, 3.1 and RFC 8200, 8.1: addresses, length and protocol count too.
std::uint16_t checksum(const Endpoints& ends, std::uint8_t protocol, const std::string& payload) {
  std::uint64_t sum = protocol + payload.size();
  if (ends.from.ss_family == AF_INET) {
    add_to_sum(sum, &v4(ends.from).sin_addr, sizeof(in_addr));
    add_to_sum(sum, &v4(ends.to).sin_addr, sizeof(in_addr));
  } else {
    add_to_sum(sum, &v6(ends.from).sin6_addr, sizeof(in6_addr));
    add_to_sum(sum, &v6(ends.to).sin6_addr, sizeof(in6_addr));
  }
  add_to_sum(sum, payload.data(), payload.size());
  return folded(sum);
}

std::string ip_header(const Endpoints& ends, std::uint8_t protocol, std::size_t payload_bytes) {
  if (ends.from.ss_family == AF_INET) {
    iphdr header{};
    header.version = 4, header.ihl = 5, header.ttl = hops, header.protocol = protocol;
    header.tot_len = htons(static_cast<std::uint16_t>(sizeof header + payload_bytes));
    header.saddr = v4(ends.from).sin_addr.s_addr;
    header.daddr = v4(ends.to).sin_addr.s_addr;
    return std::string(reinterpret_cast<const char*>(&header),
                       sizeof header);  // The kernel sums it.
  }
  ip6_hdr header{};
  header.ip6_flow = htonl(6U << 28);
  header.ip6_plen = htons(static_cast<std::uint16_t>(payload_bytes));
  header.ip6_nxt = protocol;
  header.ip6_hlim = hops;
  header.ip6_src = v6(ends.from).sin6_addr;
  header.ip6_dst = v6(ends.to).sin6_addr;
  return std::string(reinterpret_cast<const char*>(&header), sizeof header);
}

Result<void> send_packet(int netns, const Endpoints& ends, std::uint8_t protocol,
                         const std::string& payload) {
  const int family = ends.from.ss_family;
  // IPPROTO_RAW: the header is ours.
  UniqueFd raw = TRY(sys::socket_in_netns(netns, family, SOCK_RAW, IPPROTO_RAW));
  const std::string packet = ip_header(ends, protocol, payload.size()) + payload;
  sockaddr_storage to = ends.to;
  if (family == AF_INET)
    reinterpret_cast<sockaddr_in&>(to).sin_port = 0;
  else
    reinterpret_cast<sockaddr_in6&>(to).sin6_port = 0;
  const socklen_t bytes = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  if (::sendto(raw.get(), packet.data(), packet.size(), 0, reinterpret_cast<const sockaddr*>(&to),
               bytes) != static_cast<ssize_t>(packet.size()))
    return os_error(fmt::format("sendto(a packet of {} bytes)", packet.size()));
  return {};
}

Result<sockaddr_storage> plain(const std::string& address) {
  sockaddr_storage out{};
  std::memcpy(&out, address.data(), std::min(address.size(), sizeof out));
  if (out.ss_family == AF_INET) return out;
  if (out.ss_family != AF_INET6)
    return make_error(Errc::invalid, "an address of family {}", out.ss_family);
  const sockaddr_in6 whole = v6(out);
  if (!IN6_IS_ADDR_V4MAPPED(&whole.sin6_addr)) return out;
  sockaddr_storage inner{};
  auto& in = reinterpret_cast<sockaddr_in&>(inner);
  in.sin_family = AF_INET;
  in.sin_port = whole.sin6_port;
  std::memcpy(&in.sin_addr, whole.sin6_addr.s6_addr + 12, sizeof in.sin_addr);
  return inner;
}

}  // namespace

bool has_port(const std::string& address) {
  sockaddr_in in{};  // Both families have it at the same place.
  std::memcpy(&in, address.data(), std::min(address.size(), sizeof in));
  return in.sin_port != 0;
}

Result<Endpoints> from_peer(const std::string& local, const std::string& peer) {
  Endpoints ends{TRY(plain(peer)), TRY(plain(local))};
  if (ends.from.ss_family != ends.to.ss_family)
    return make_error(Errc::invalid, "addresses of two families");
  return ends;
}

Result<void> send_segment(int netns, const Endpoints& ends, const Segment& segment) {
  struct [[gnu::packed]] {
    std::uint8_t nothing[2] = {option_nothing, option_nothing};
    std::uint8_t kind = option_timestamp, bytes = 10;
    std::uint32_t value = 0, echo = 0;
  } timestamp;
  static_assert(sizeof timestamp == 12);
  std::string options;
  if (segment.timestamp_echo) {
    timestamp.echo = htonl(*segment.timestamp_echo);
    options.assign(reinterpret_cast<const char*>(&timestamp), sizeof timestamp);
  }
  tcphdr header{};
  header.source = port(ends.from), header.dest = port(ends.to);
  header.seq = htonl(segment.sequence), header.ack_seq = htonl(segment.acknowledged);
  header.doff = static_cast<std::uint16_t>((sizeof header + options.size()) / 4) & 0xf;
  header.fin = segment.ends, header.ack = 1;
  header.window = htons(segment.window);
  auto whole = [&] {
    return std::string(reinterpret_cast<const char*>(&header), sizeof header) + options;
  };
  header.check = checksum(ends, IPPROTO_TCP, whole());
  return send_packet(netns, ends, IPPROTO_TCP, whole());
}

Result<void> send_datagram(int netns, const Endpoints& ends, const std::string& data) {
  udphdr header{};
  header.source = port(ends.from), header.dest = port(ends.to);
  header.len = htons(static_cast<std::uint16_t>(sizeof header + data.size()));
  std::string payload(reinterpret_cast<const char*>(&header), sizeof header);
  header.check = checksum(ends, IPPROTO_UDP, payload + data);
  if (header.check == 0) header.check = 0xffff;
  payload.assign(reinterpret_cast<const char*>(&header), sizeof header);
  return send_packet(netns, ends, IPPROTO_UDP, payload + data);
}

}  // namespace godwit::sockets
