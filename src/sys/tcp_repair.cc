#include "sys/tcp_repair.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <span>

#include "sys/socket_options.h"

namespace godwit::sys {
namespace {

constexpr int tcpopt_mss = 2, tcpopt_window = 3, tcpopt_sack_permitted = 4, tcpopt_timestamp = 8;

Result<std::uint32_t> queued(int socket, unsigned long request, const char* name) {
  int bytes = 0;
  if (::ioctl(socket, request, &bytes) != 0) return os_error(fmt::format("ioctl({})", name));
  return static_cast<std::uint32_t>(bytes);
}

}  // namespace

Result<int> int_tcp_option(int socket, int name) {
  return int_socket_option(socket, IPPROTO_TCP, name);
}

Result<void> set_int_tcp_option(int socket, int name, int value) {
  return set_int_socket_option(socket, IPPROTO_TCP, name, value);
}

Result<void> set_tcp_repair(int socket, TcpRepair mode) {
  return set_int_tcp_option(socket, TCP_REPAIR, static_cast<int>(mode));
}

Result<bool> in_tcp_repair(int socket) { return TRY(int_tcp_option(socket, TCP_REPAIR)) != 0; }

Result<tcp_info> read_tcp_info(int socket) {
  tcp_info info{};
  socklen_t bytes = sizeof info;
  if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0)
    return os_error("getsockopt(TCP_INFO)");
  return info;
}

Result<void> choose_tcp_queue(int socket, TcpQueue queue) {
  return set_int_tcp_option(socket, TCP_REPAIR_QUEUE, static_cast<int>(queue));
}

Result<std::uint32_t> tcp_sequence(int socket, TcpQueue queue) {
  TRY(choose_tcp_queue(socket, queue));
  return static_cast<std::uint32_t>(TRY(int_tcp_option(socket, TCP_QUEUE_SEQ)));
}

Result<void> set_tcp_sequence(int socket, TcpQueue queue, std::uint32_t sequence) {
  TRY(choose_tcp_queue(socket, queue));
  return set_int_tcp_option(socket, TCP_QUEUE_SEQ, static_cast<int>(sequence));
}

Result<std::string> peek_tcp_queue(int socket, TcpQueue queue, std::size_t bytes) {
  if (bytes == 0) return std::string();
  TRY(choose_tcp_queue(socket, queue));
  std::string data(bytes, '\0');
  const ssize_t n = ::recv(socket, data.data(), bytes, MSG_PEEK | MSG_DONTWAIT);
  if (n < 0 || static_cast<std::size_t>(n) != bytes)
    return os_error(fmt::format("recv(MSG_PEEK, {} bytes): {}", bytes, n), n < 0 ? errno : EIO);
  return data;
}

Result<tcp_repair_window> tcp_window(int socket) {
  tcp_repair_window window{};
  socklen_t bytes = sizeof window;
  if (::getsockopt(socket, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, &bytes) != 0)
    return os_error("getsockopt(TCP_REPAIR_WINDOW)");
  return window;
}

Result<void> set_tcp_window(int socket, const tcp_repair_window& window) {
  if (::setsockopt(socket, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, sizeof window) != 0)
    return os_error("setsockopt(TCP_REPAIR_WINDOW)");
  return {};
}

Result<void> set_tcp_negotiated(int socket, const TcpNegotiated& options) {
  tcp_repair_opt list[4];
  socklen_t count = 0;
  if (options.sack) list[count++] = {tcpopt_sack_permitted, 0};
  if (options.scale)
    list[count++] = {tcpopt_window, options.send_scale | (options.receive_scale << 16)};
  if (options.timestamps) list[count++] = {tcpopt_timestamp, 0};
  list[count++] = {tcpopt_mss, options.mss};
  if (::setsockopt(socket, IPPROTO_TCP, TCP_REPAIR_OPTIONS, list,
                   count * static_cast<socklen_t>(sizeof list[0])) != 0)
    return os_error("setsockopt(TCP_REPAIR_OPTIONS)");
  return {};
}

// The kernel works it out when the path's limit changes or headers do; so it is told that there are
// no IP options, which there aren't. A socket of IPv6 that has connected, not accepted, takes them
// for one that may speak IPv4.
Result<void> update_tcp_segment_size(int socket) {
  if (::setsockopt(socket, IPPROTO_IP, IP_OPTIONS, nullptr, 0) != 0)
    return os_error("setsockopt(IP_OPTIONS, nothing)");
  return {};
}

// Setting this option looks at the queue, whatever it was before.
Result<void> send_what_waits(int socket) {
  const int before = TRY(int_tcp_option(socket, TCP_NODELAY));
  TRY(set_int_tcp_option(socket, TCP_NODELAY, 1));
  return before == 1 ? Result<void>{} : set_int_tcp_option(socket, TCP_NODELAY, before);
}

namespace {

// A filter sees a segment from its header on.
constexpr std::uint32_t flags_at = 13, flag_reset = 4, whole = 0xffffffff;
constexpr std::array drop_everything{sock_filter BPF_STMT(BPF_RET | BPF_K, 0)};
constexpr std::array drop_what_resets{
    sock_filter BPF_STMT(BPF_LD | BPF_B | BPF_ABS, flags_at),
    sock_filter BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, flag_reset, 1, 0),
    sock_filter BPF_STMT(BPF_RET | BPF_K, whole), sock_filter BPF_STMT(BPF_RET | BPF_K, 0)};

Result<void> attach(int socket, std::span<const sock_filter> filter) {
  sock_fprog program{static_cast<unsigned short>(filter.size()),
                     const_cast<sock_filter*>(filter.data())};
  if (::setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0)
    return os_error("setsockopt(SO_ATTACH_FILTER)");
  return {};
}

Result<bool> has_filter(int socket, std::span<const sock_filter> filter) {
  std::array<sock_filter, drop_what_resets.size()> now{};
  socklen_t count = 0;  // In instructions.
  if (::getsockopt(socket, SOL_SOCKET, SO_GET_FILTER, nullptr, &count) != 0 ||
      count != filter.size())
    return false;
  if (::getsockopt(socket, SOL_SOCKET, SO_GET_FILTER, now.data(), &count) != 0)
    return os_error("getsockopt(SO_GET_FILTER)");
  return std::memcmp(now.data(), filter.data(), filter.size_bytes()) == 0;
}

}  // namespace

Result<void> drop_all_packets(int socket) { return attach(socket, drop_everything); }
Result<void> drop_resets(int socket) { return attach(socket, drop_what_resets); }

Result<void> allow_packets(int socket) {
  if (!TRY(has_filter(socket, drop_everything)) && !TRY(has_filter(socket, drop_what_resets)))
    return {};
  const int unused = 0;
  if (::setsockopt(socket, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof unused) != 0)
    return os_error("setsockopt(SO_DETACH_FILTER)");
  return {};
}

Result<std::uint32_t> unread_bytes(int socket) { return queued(socket, SIOCINQ, "SIOCINQ"); }
Result<std::uint32_t> unacknowledged_bytes(int socket) {
  return queued(socket, SIOCOUTQ, "SIOCOUTQ");
}
Result<std::uint32_t> unsent_bytes(int socket) {
  return queued(socket, SIOCOUTQNSD, "SIOCOUTQNSD");
}

}  // namespace godwit::sys
