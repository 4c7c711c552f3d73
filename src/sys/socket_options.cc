// Which options there are depends on the family and protocol; asking for one that a socket doesn't
// have says so (ENOPROTOOPT, EOPNOTSUPP...), without a trace.
//
// - SO_RCVBUF and SO_SNDBUF read as double what was set, which is what the kernel allows for its
// own
//   overhead. Setting one ends its automatic growth; SO_BUF_LOCK, from 5.14, tells and changes
//   that.
// - Timeouts are set as they are read. TCP_DEFER_ACCEPT is kept in units of retransmissions and
// reads
//   as the seconds of these: setting what was read gives the same number again.

#include "sys/socket_options.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/in6.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <poll.h>
#include <linux/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "base/log.h"

namespace godwit::sys {
namespace {

constexpr int so_buf_lock = 72, so_rcvmark = 75, so_passpidfd = 76, so_passrights = 83, so_inq = 84;
constexpr std::size_t value_bytes_max = 64;

struct Known {
  int level, name;
};

// In the order in which they are set: what limits others comes after them.
constexpr Known known[] = {
    {SOL_SOCKET, SO_BINDTODEVICE},
    {SOL_SOCKET, SO_REUSEADDR},
    {SOL_SOCKET, SO_REUSEPORT},
    {SOL_SOCKET, SO_BROADCAST},
    {SOL_SOCKET, SO_KEEPALIVE},
    {SOL_SOCKET, SO_DONTROUTE},
    {SOL_SOCKET, SO_OOBINLINE},
    {SOL_SOCKET, SO_LINGER},
    {SOL_SOCKET, SO_RCVLOWAT},
    {SOL_SOCKET, SO_RCVTIMEO},
    {SOL_SOCKET, SO_SNDTIMEO},
    {SOL_SOCKET, SO_PRIORITY},
    {SOL_SOCKET, SO_MARK},
    {SOL_SOCKET, SO_PASSCRED},
    {SOL_SOCKET, SO_PASSSEC},
    {SOL_SOCKET, SO_NO_CHECK},
    {SOL_SOCKET, SO_TIMESTAMP},
    {SOL_SOCKET, SO_TIMESTAMPNS},
    {SOL_SOCKET, SO_TIMESTAMPING},
    {SOL_SOCKET, SO_RXQ_OVFL},
    {SOL_SOCKET, SO_WIFI_STATUS},
    {SOL_SOCKET, SO_PEEK_OFF},
    {SOL_SOCKET, SO_LOCK_FILTER},
    {SOL_SOCKET, SO_SELECT_ERR_QUEUE},
    {SOL_SOCKET, SO_BUSY_POLL},
    {SOL_SOCKET, SO_MAX_PACING_RATE},
    {SOL_SOCKET, SO_ZEROCOPY},
    {SOL_SOCKET, so_rcvmark},
    {SOL_SOCKET, so_passpidfd},
    {SOL_SOCKET, so_passrights},
    {SOL_SOCKET, so_inq},
    {SOL_SOCKET, SO_SNDBUF},
    {SOL_SOCKET, SO_RCVBUF},
    {SOL_SOCKET, so_buf_lock},
    {IPPROTO_IP, IP_TOS},
    {IPPROTO_IP, IP_TTL},
    {IPPROTO_IP, IP_MINTTL},
    {IPPROTO_IP, IP_MTU_DISCOVER},
    {IPPROTO_IP, IP_RECVERR},
    {IPPROTO_IP, IP_PKTINFO},
    {IPPROTO_IP, IP_RECVTTL},
    {IPPROTO_IP, IP_RECVTOS},
    {IPPROTO_IP, IP_RECVOPTS},
    {IPPROTO_IP, IP_RETOPTS},
    {IPPROTO_IP, IP_RECVORIGDSTADDR},
    {IPPROTO_IP, IP_CHECKSUM},
    {IPPROTO_IP, IP_RECVFRAGSIZE},
    {IPPROTO_IP, IP_PASSSEC},
    {IPPROTO_IP, IP_HDRINCL},
    {IPPROTO_IP, IP_NODEFRAG},
    {IPPROTO_IP, IP_FREEBIND},
    {IPPROTO_IP, IP_TRANSPARENT},
    {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT},
    {IPPROTO_IP, IP_MULTICAST_IF},
    {IPPROTO_IP, IP_MULTICAST_TTL},
    {IPPROTO_IP, IP_MULTICAST_LOOP},
    {IPPROTO_IP, IP_MULTICAST_ALL},
    {IPPROTO_IPV6, IPV6_V6ONLY},
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS},
    {IPPROTO_IPV6, IPV6_MULTICAST_IF},
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP},
    {IPPROTO_IPV6, IPV6_MULTICAST_ALL},
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER},
    {IPPROTO_IPV6, IPV6_RECVERR},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT},
    {IPPROTO_IPV6, IPV6_RECVRTHDR},
    {IPPROTO_IPV6, IPV6_RECVHOPOPTS},
    {IPPROTO_IPV6, IPV6_RECVDSTOPTS},
    {IPPROTO_IPV6, IPV6_RECVTCLASS},
    {IPPROTO_IPV6, IPV6_RECVFRAGSIZE},
    {IPPROTO_IPV6, IPV6_RECVORIGDSTADDR},
    {IPPROTO_IPV6, IPV6_TCLASS},
    {IPPROTO_IPV6, IPV6_DONTFRAG},
    {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL},
    {IPPROTO_IPV6, IPV6_FREEBIND},
    {IPPROTO_IPV6, IPV6_TRANSPARENT},
    {IPPROTO_IPV6, IPV6_MINHOPCOUNT},
    {SOL_NETLINK, NETLINK_PKTINFO},
    {SOL_NETLINK, NETLINK_BROADCAST_ERROR},
    {SOL_NETLINK, NETLINK_NO_ENOBUFS},
    {SOL_NETLINK, NETLINK_LISTEN_ALL_NSID},
    {SOL_NETLINK, NETLINK_CAP_ACK},
    {SOL_NETLINK, NETLINK_EXT_ACK},
    {SOL_NETLINK, NETLINK_GET_STRICT_CHK},
    {IPPROTO_TCP, TCP_CONGESTION},
    {IPPROTO_TCP, TCP_NODELAY},
    {IPPROTO_TCP, TCP_CORK},
    {IPPROTO_TCP, TCP_KEEPIDLE},
    {IPPROTO_TCP, TCP_KEEPINTVL},
    {IPPROTO_TCP, TCP_KEEPCNT},
    {IPPROTO_TCP, TCP_SYNCNT},
    {IPPROTO_TCP, TCP_LINGER2},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT},
    {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS},
    {IPPROTO_TCP, TCP_USER_TIMEOUT},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT},
    {IPPROTO_TCP, TCP_SAVE_SYN},
    {IPPROTO_TCP, TCP_INQ},
    {IPPROTO_TCP, TCP_TX_DELAY},
};

bool is_absent(int code) {
  return code == ENOPROTOOPT || code == EOPNOTSUPP || code == EINVAL || code == ENOTCONN;
}

bool is_known(const SocketOption& option) {
  return std::any_of(std::begin(known), std::end(known), [&](const Known& one) {
    return one.level == option.level && one.name == option.name;
  });
}

// A stream has these too, as its peer's packets left them, but they can't be set.
bool is_of_multicast(Known option) {
  if (option.level == IPPROTO_IP)
    return option.name == IP_MULTICAST_IF || option.name == IP_MULTICAST_TTL ||
           option.name == IP_MULTICAST_LOOP || option.name == IP_MULTICAST_ALL;
  return option.level == IPPROTO_IPV6 &&
         (option.name == IPV6_MULTICAST_IF || option.name == IPV6_MULTICAST_HOPS ||
          option.name == IPV6_MULTICAST_LOOP || option.name == IPV6_MULTICAST_ALL);
}

bool can_have(int family, int type, Known option) {
  if (option.level == SOL_SOCKET) return true;
  if (family == AF_UNIX || family == AF_NETLINK)
    return family == AF_NETLINK && option.level == SOL_NETLINK;
  if (option.level == SOL_NETLINK) return false;
  if (option.level == IPPROTO_TCP) return type == SOCK_STREAM;
  if (option.level == IPPROTO_IPV6 && family == AF_INET) return false;
  return type != SOCK_STREAM || !is_of_multicast(option);
}

// Empty: this socket has no such option.
Result<std::string> read_option(int socket, Known option) {
  char value[value_bytes_max] = {};
  socklen_t bytes = sizeof value;
  if (::getsockopt(socket, option.level, option.name, value, &bytes) == 0)
    return std::string(value, std::min<std::size_t>(bytes, sizeof value));
  if (is_absent(errno)) return std::string();
  return os_error(fmt::format("getsockopt({}, {})", option.level, option.name));
}

Result<void> read_filter(int socket, std::vector<SocketOption>& out) {
  // Counted in instructions, not in bytes.
  socklen_t count = 0;
  if (::getsockopt(socket, SOL_SOCKET, SO_GET_FILTER, nullptr, &count) != 0) {
    if (errno == EACCES)
      return make_error(Errc::refused, "it has a BPF filter (SO_ATTACH_BPF), which can't move");
    return os_error("getsockopt(SO_GET_FILTER)");
  }
  if (count == 0) return {};
  std::string filter(count * sizeof(sock_filter), '\0');
  if (::getsockopt(socket, SOL_SOCKET, SO_GET_FILTER, filter.data(), &count) != 0)
    return os_error("getsockopt(SO_GET_FILTER)");
  out.push_back({SOL_SOCKET, SO_ATTACH_FILTER, std::move(filter)});
  return {};
}

Result<void> attach_filter(int socket, const std::string& filter) {
  std::string copy = filter;
  sock_fprog program{static_cast<unsigned short>(copy.size() / sizeof(sock_filter)),
                     reinterpret_cast<sock_filter*>(copy.data())};
  if (::setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0)
    return os_error("setsockopt(SO_ATTACH_FILTER)");
  return {};
}

}  // namespace

Result<int> int_socket_option(int socket, int level, int name) {
  int value = 0;
  socklen_t bytes = sizeof value;
  if (::getsockopt(socket, level, name, &value, &bytes) != 0)
    return os_error(fmt::format("getsockopt({}, {})", level, name));
  return value;
}

Result<void> set_int_socket_option(int socket, int level, int name, int value) {
  if (::setsockopt(socket, level, name, &value, sizeof value) != 0)
    return os_error(fmt::format("setsockopt({}, {}, {})", level, name, value));
  return {};
}

bool polls(int socket, short event) {
  pollfd asked{socket, event, 0};
  return ::poll(&asked, 1, 0) > 0 && (asked.revents & event) != 0;
}

Result<std::vector<SocketOption>> socket_options(int socket) {
  std::vector<SocketOption> out;
  const int family = TRY(int_socket_option(socket, SOL_SOCKET, SO_DOMAIN));
  const int type = TRY(int_socket_option(socket, SOL_SOCKET, SO_TYPE));
  TRY(read_filter(socket, out));  // First: SO_LOCK_FILTER comes after it.
  for (const Known& option : known) {
    if (!can_have(family, type, option)) continue;  // It is a matter of calls.
    std::string value = TRY(read_option(socket, option));
    if (!value.empty()) out.push_back({option.level, option.name, std::move(value)});
  }
  return out;
}

Result<void> set_buffer_size(int socket, int option, int bytes) {
  const int half = bytes / 2;
  if (::setsockopt(socket, SOL_SOCKET, option == SO_RCVBUF ? SO_RCVBUFFORCE : SO_SNDBUFFORCE, &half,
                   sizeof half) != 0)
    return os_error(fmt::format("setsockopt(buffer size {})", half));
  return {};
}

bool is_late_option(const SocketOption& option) {
  return option.level == SOL_SOCKET && (option.name == SO_SNDBUF || option.name == SO_RCVBUF ||
                                        option.name == so_buf_lock || option.name == SO_REUSEADDR);
}

Result<void> set_socket_options(int socket, std::span<const SocketOption> options) {
  for (const SocketOption& option : options) {
    if (option.level == SOL_SOCKET && option.name == SO_ATTACH_FILTER) {
      TRY(attach_filter(socket, option.value));
      continue;
    }
    if (!is_known(option))
      return make_error(Errc::invalid, "socket option ({}, {})", option.level, option.name);
    const Result<std::string> now = read_option(socket, {option.level, option.name});
    if (now.ok() && *now == option.value) continue;
    if (option.level == SOL_SOCKET && (option.name == SO_SNDBUF || option.name == SO_RCVBUF)) {
      int bytes = 0;
      std::memcpy(&bytes, option.value.data(), std::min(sizeof bytes, option.value.size()));
      TRY(set_buffer_size(socket, option.name, bytes));
      continue;
    }
    if (::setsockopt(socket, option.level, option.name, option.value.data(),
                     static_cast<socklen_t>(option.value.size())) == 0)
      continue;
    // Nobody depends on how it is done that much.
    if (option.level != IPPROTO_TCP || option.name != TCP_CONGESTION)
      return os_error(fmt::format("setsockopt({}, {})", option.level, option.name));
    LOG(warn, "congestion control \"{}\" isn't there: a connection goes on with the default",
        option.value.c_str());
  }
  return {};
}

}  // namespace godwit::sys
