#include "sys/tcp_repair.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

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
  int value = 0;
  socklen_t bytes = sizeof value;
  if (::getsockopt(socket, IPPROTO_TCP, name, &value, &bytes) != 0)
    return os_error(fmt::format("getsockopt(IPPROTO_TCP, {})", name));
  return value;
}

Result<void> set_int_tcp_option(int socket, int name, int value) {
  if (::setsockopt(socket, IPPROTO_TCP, name, &value, sizeof value) != 0)
    return os_error(fmt::format("setsockopt(IPPROTO_TCP, {}, {})", name, value));
  return {};
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

namespace {
constexpr sock_filter drop_everything = BPF_STMT(BPF_RET | BPF_K, 0);
}

Result<void> drop_all_packets(int socket) {
  sock_filter filter = drop_everything;
  sock_fprog program{1, &filter};
  if (::setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0)
    return os_error("setsockopt(SO_ATTACH_FILTER)");
  return {};
}

Result<void> allow_packets(int socket) {
  sock_filter filter{};
  socklen_t count = 0;
  if (::getsockopt(socket, SOL_SOCKET, SO_GET_FILTER, nullptr, &count) != 0 || count != 1)
    return {};
  if (::getsockopt(socket, SOL_SOCKET, SO_GET_FILTER, &filter, &count) != 0)
    return os_error("getsockopt(SO_GET_FILTER)");
  if (filter.code != drop_everything.code || filter.k != drop_everything.k) return {};
  const int unused = 0;
  if (::setsockopt(socket, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof unused) != 0 &&
      errno != ENOENT)
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
