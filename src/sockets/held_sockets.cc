// The order, and why:
//
//   drain            what is on its way is acknowledged, mostly; else the peer's, or our, timer for
//                    sending it again must run out first: 200 ms and more
//   gate             nothing comes or goes by the network
//   filters          what has passed the gate already, and packets within the capsule, are dropped
//   at
//                    the socket, under its lock: from here a connection changes no more
//   look             for whom it is too early: a half-open connection is a listener's secret, one
//   that
//                    wasn't accepted can't be put back, and nobody sends the rest of one that the
//                    program has closed
//   repair           then it can be read

#include "sockets/held_sockets.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include <algorithm>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "sockets/connection.h"
#include "sockets/datagrams.h"
#include "sockets/netlink_sockets.h"
#include "sockets/tcp_state.h"
#include "sys/namespaces.h"
#include "sys/proc.h"
#include "sys/sock_diag.h"
#include "sys/socket_options.h"
#include "sys/tcp_repair.h"

namespace godwit::sockets {
namespace {

constexpr std::int64_t drain_us_max = 5'000;
constexpr timespec drain_look{0, 50'000};
constexpr timespec idle_look_first{0, 500'000};
constexpr long idle_look_ns_max = 10'000'000;

Result<bool> is_tcp(int socket) {
  const int family = TRY(sys::int_socket_option(socket, SOL_SOCKET, SO_DOMAIN));
  return (family == AF_INET || family == AF_INET6) &&
         TRY(sys::int_socket_option(socket, SOL_SOCKET, SO_TYPE)) == SOCK_STREAM &&
         TRY(sys::int_socket_option(socket, SOL_SOCKET, SO_PROTOCOL)) == IPPROTO_TCP;
}

// Sockets of the network namespace that have a place in the table of connections.
Result<std::uint64_t> sockets_in_use(pid_t pid) {
  std::uint64_t all = 0;
  for (const auto& [file, line] :
       {std::pair("net/sockstat", "TCP: inuse "), std::pair("net/sockstat6", "TCP6: inuse ")}) {
    const Result<std::string> text = read_file(sys::proc_path(pid, file));
    if (!text.ok() && text.error().sys_errno() == ENOENT) continue;  // A kernel without IPv6.
    if (!text.ok()) return text.error();
    const std::size_t at = text->find(line);
    if (at != std::string::npos)
      all += std::strtoull(text->c_str() + at + std::string_view(line).size(), nullptr, 10);
  }
  return all;
}

}  // namespace

HeldSockets::~HeldSockets() {
  if (committed_) return;
  if (Result<void> released = release(); !released.ok())
    LOG(error, "sockets: {}", released.error().what());
}

Result<void> HeldSockets::take(std::span<const int> sockets) {
  for (int socket : sockets) {
    // The kernel answers at once; the rest of a long answer comes as the program reads.
    if (TRY(sys::int_socket_option(socket, SOL_SOCKET, SO_DOMAIN)) == AF_NETLINK &&
        sys::polls(socket, POLLIN))
      return make_error(Errc::busy,
                        "an answer of the kernel waits to be read from a netlink socket");
    if (!TRY(is_tcp(socket))) continue;
    const std::uint8_t state = TRY(sys::read_tcp_info(socket)).tcpi_state;
    if (state == tcp_syn_received) return make_error(Errc::busy, "a connection is just being made");
    if (state == tcp_closed) continue;
    UniqueFd copy = TRY(duplicate(socket));
    if (state == tcp_syn_sent)
      connecting_.push_back(std::move(copy));
    else if (state == tcp_listening)
      listeners_.push_back(std::move(copy));
    else
      connections_.push_back(
          {std::move(copy), TRY(sys::int_socket_option(socket, SOL_SOCKET, SO_REUSEADDR))});
  }
  return {};
}

// What doesn't get through in this time (nor what the peer has no room for) goes along.
void HeldSockets::drain() const {
  const std::int64_t until_us = monotonic_us() + drain_us_max;
  auto on_its_way = [](const Connection& connection) {
    const Result<std::uint32_t> all = sys::unacknowledged_bytes(connection.socket.get());
    const Result<std::uint32_t> unsent = sys::unsent_bytes(connection.socket.get());
    return all.ok() && unsent.ok() && *all > *unsent;
  };
  while (std::any_of(connections_.begin(), connections_.end(), on_its_way) &&
         monotonic_us() < until_us)
    ::nanosleep(&drain_look, nullptr);
}

// Empty: nothing that can't be moved.
Result<std::string> HeldSockets::what_goes_on() const {
  UniqueFd netns = TRY(sys::open_namespace(init_pid_, "net"));
  sys::SockDiag diag = TRY(sys::SockDiag::open_in(netns.get()));
  constexpr std::uint32_t states = 1U << tcp_syn_received | 1U << tcp_fin_wait1 |
                                   1U << tcp_last_ack | 1U << tcp_closing | 1U << tcp_listening;
  for (const sys::TcpSocketDiag& socket : TRY(diag.tcp(states))) {
    if (socket.state == tcp_syn_received) return std::string("a connection is just being made");
    if (socket.state == tcp_listening && socket.waiting != 0)
      return std::string("a connection waits to be accepted");
    if (socket.state != tcp_listening && socket.inode == 0 && socket.unacknowledged_bytes != 0)
      return std::string("a connection that the program has closed has still data to send");
  }
  return std::string();
}

Result<void> HeldSockets::wait_until_idle(std::int64_t us_max) const {
  const std::int64_t until_us = monotonic_us() + us_max;
  timespec look = idle_look_first;
  while (TRY(sockets_in_use(init_pid_)) != 0 && !TRY(what_goes_on()).empty() &&
         monotonic_us() < until_us) {
    ::nanosleep(&look, nullptr);
    look.tv_nsec = std::min(2 * look.tv_nsec, idle_look_ns_max);
  }
  return {};
}

Result<void> HeldSockets::check_idle() {
  // The walk that tells costs a millisecond: only where there can be something.
  const std::uint64_t known = connections_.size() + connecting_.size() + listeners_.size();
  if (!listeners_.empty() || TRY(sockets_in_use(init_pid_)) > known) {
    const std::string busy = TRY(what_goes_on());
    if (!busy.empty()) return Error(Errc::busy, busy);
  }
  if (connecting_.empty()) return {};
  UniqueFd netns = TRY(sys::open_namespace(init_pid_, "net"));
  sys::SockDiag diag = TRY(sys::SockDiag::open_in(netns.get()));
  for (sys::TcpSocketDiag& socket : TRY(diag.tcp(1U << tcp_syn_sent)))
    connecting_to_[socket.inode] = std::move(socket.peer);
  return {};
}

Result<void> HeldSockets::hold(std::span<const int> sockets) {
  INVARIANT(!closed_ && connections_.empty(), "sockets are held twice");
  auto all = [&]() -> Result<void> {
    TRY(take(sockets));
    drain();
    closed_ = true;
    TRY(gate_(false));
    for (const Connection& c : connections_) TRY(sys::drop_all_packets(c.socket.get()));
    for (const auto* sockets_of : {&listeners_, &connecting_})
      for (const UniqueFd& socket : *sockets_of) TRY(sys::drop_all_packets(socket.get()));
    TRY(check_idle());
    for (const Connection& c : connections_)
      TRY(sys::set_tcp_repair(c.socket.get(), sys::TcpRepair::on));
    return {};
  };
  Result<void> held = all();
  if (!held.ok()) TRY(release());
  return held;
}

Result<void> HeldSockets::describe(int socket, image::Socket& out) const {
  if (out.family() == AF_NETLINK) return describe_netlink(socket, out);
  if (!TRY(is_tcp(socket))) return describe_datagrams(socket, out);
  const tcp_info info = TRY(sys::read_tcp_info(socket));
  if (info.tcpi_state == tcp_listening) {
    out.set_backlog(info.tcpi_sacked);
    return {};
  }
  if (info.tcpi_state == tcp_closed) return {};
  if (info.tcpi_state == tcp_syn_sent) {
    struct stat st {};
    if (::fstat(socket, &st) != 0) return os_error("fstat");
    auto found = connecting_to_.find(st.st_ino);
    if (found == connecting_to_.end())
      return make_error(Errc::busy, "a connection is just being made");
    out.set_peer(found->second);
    out.mutable_connection()->set_state(tcp_syn_sent);
    return {};
  }
  return describe_connection(socket, out);
}

Result<void> HeldSockets::release() {
  Result<void> done;
  auto also = [&](Result<void> step) {
    if (!step.ok() && done.ok()) done = std::move(step);
  };
  if (closed_) also(gate_(true));
  closed_ = false;
  for (const auto* sockets : {&listeners_, &connecting_})
    for (const UniqueFd& socket : *sockets) also(let_go(socket.get()));
  for (const Connection& c : connections_) also(let_go(c.socket.get(), c.reuse_address));
  connections_.clear(), listeners_.clear(), connecting_.clear();
  connecting_to_.clear();
  return done;
}

Result<std::string> reason_against(int socket) {
  const int family = TRY(sys::int_socket_option(socket, SOL_SOCKET, SO_DOMAIN));
  const int type = TRY(sys::int_socket_option(socket, SOL_SOCKET, SO_TYPE));
  const int protocol = TRY(sys::int_socket_option(socket, SOL_SOCKET, SO_PROTOCOL));
  if (family == AF_NETLINK) return reason_against_netlink(protocol);
  if (family != AF_INET && family != AF_INET6)
    return fmt::format("is a socket of family {}, which can't move yet", family);
  // Of others (raw, ping) nothing here tells whether they are connected: they have no ports.
  if (type == SOCK_DGRAM && protocol == IPPROTO_UDP) return std::string();
  if (type != SOCK_STREAM || protocol != IPPROTO_TCP)
    return fmt::format("is a socket of type {} and protocol {}, which can't move yet", type,
                       protocol);
  char ulp[16] = {};
  socklen_t bytes = sizeof ulp;
  if (::getsockopt(socket, IPPROTO_TCP, TCP_ULP, ulp, &bytes) == 0 && bytes > 0 && ulp[0] != '\0')
    return fmt::format("is a TCP socket with the kernel's \"{}\" on top, which can't move yet",
                       ulp);
  socklen_t instructions = 0;
  if (::getsockopt(socket, SOL_SOCKET, SO_GET_FILTER, nullptr, &instructions) != 0 ||
      instructions != 0)
    return std::string("is a TCP socket with a packet filter of its own, which can't move yet");
  const std::uint8_t state = TRY(sys::read_tcp_info(socket)).tcpi_state;
  // It has no state but that it was one: it reads the end of its stream, not ENOTCONN.
  if (state == tcp_closed && sys::polls(socket, POLLRDHUP))
    return std::string(
        "is a TCP socket whose connection has ended on both sides, which can't move yet");
  return std::string();
}

Result<void> let_go(int socket, int reuse_address) {
  if (!TRY(is_tcp(socket))) return {};
  TRY(sys::allow_packets(socket));
  const std::uint8_t state = TRY(sys::read_tcp_info(socket)).tcpi_state;
  if (state == tcp_listening || !TRY(sys::in_tcp_repair(socket))) return {};
  TRY(sys::set_tcp_repair(socket, sys::TcpRepair::off));
  TRY(sys::send_what_waits(socket));
  return sys::set_int_socket_option(socket, SOL_SOCKET, SO_REUSEADDR, reuse_address);
}

}  // namespace godwit::sockets
