#include "sys/sock_diag.h"

#include <libmnl/libmnl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>

#include "sys/namespaces.h"

namespace godwit::sys {
namespace {

constexpr std::size_t buffer_bytes = 32 * 1024;
constexpr std::uint8_t tcp_listen = 10;

std::string peer_of(const inet_diag_msg& diag) {
  if (diag.idiag_family == AF_INET) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = diag.id.idiag_dport;
    std::memcpy(&in.sin_addr, diag.id.idiag_dst, sizeof in.sin_addr);
    return std::string(reinterpret_cast<const char*>(&in), sizeof in);
  }
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = diag.id.idiag_dport;
  std::memcpy(&in6.sin6_addr, diag.id.idiag_dst, sizeof in6.sin6_addr);
  in6.sin6_scope_id = IN6_IS_ADDR_LINKLOCAL(&in6.sin6_addr) ? diag.id.idiag_if : 0;
  return std::string(reinterpret_cast<const char*>(&in6), sizeof in6);
}

int each_tcp(const nlmsghdr* header, void* data) {
  const auto* diag = static_cast<const inet_diag_msg*>(mnl_nlmsg_get_payload(header));
  TcpSocketDiag& found = static_cast<std::vector<TcpSocketDiag>*>(data)->emplace_back();
  found.state = diag->idiag_state;
  found.inode = diag->idiag_inode;
  found.waiting = diag->idiag_rqueue;
  found.unacknowledged_bytes = diag->idiag_wqueue;
  found.peer = peer_of(*diag);
  return MNL_CB_OK;
}

int each_attribute(const nlattr* attribute, void* data) {
  auto& diag = *static_cast<UnixSocketDiag*>(data);
  const auto* numbers = static_cast<const std::uint32_t*>(mnl_attr_get_payload(attribute));
  switch (mnl_attr_get_type(attribute)) {
    case UNIX_DIAG_PEER:
      diag.peer = *numbers;
      break;
    case UNIX_DIAG_ICONS:
      diag.waiting.assign(numbers, numbers + mnl_attr_get_payload_len(attribute) / sizeof *numbers);
      break;
    case UNIX_DIAG_RQLEN:
      diag.unread_bytes = numbers[0];
      if (diag.state == tcp_listen) diag.backlog = numbers[1];
      break;
    case UNIX_DIAG_SHUTDOWN:
      diag.shutdown = mnl_attr_get_u8(attribute);
      break;
    default:
      break;
  }
  return MNL_CB_OK;
}

int each_unix(const nlmsghdr* header, void* data) {
  const auto* message = static_cast<const unix_diag_msg*>(mnl_nlmsg_get_payload(header));
  UnixSocketDiag& diag = static_cast<std::vector<UnixSocketDiag>*>(data)->emplace_back();
  diag.inode = message->udiag_ino;
  diag.type = message->udiag_type;
  diag.state = message->udiag_state;
  return mnl_attr_parse(header, sizeof *message, each_attribute, &diag);
}

template <typename Request>
nlmsghdr* dump_request(std::vector<char>& buffer, std::uint32_t sequence, Request*& request) {
  buffer.resize(buffer_bytes);
  nlmsghdr* header = mnl_nlmsg_put_header(buffer.data());
  header->nlmsg_type = SOCK_DIAG_BY_FAMILY;
  header->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  header->nlmsg_seq = sequence;
  request = static_cast<Request*>(mnl_nlmsg_put_extra_header(header, sizeof(Request)));
  return header;
}

Result<void> ask(int socket, const nlmsghdr* request, std::vector<char>& buffer, mnl_cb_t each,
                 void* out) {
  const std::uint32_t sequence = request->nlmsg_seq;
  if (::send(socket, request, request->nlmsg_len, 0) < 0) return os_error("send(sock_diag)");
  while (true) {
    const ssize_t n = ::recv(socket, buffer.data(), buffer.size(), 0);
    if (n < 0) return os_error("recv(sock_diag)");
    const int more = mnl_cb_run(buffer.data(), static_cast<std::size_t>(n), sequence, 0, each, out);
    if (more < 0) return os_error("sock_diag");
    if (more == MNL_CB_STOP) return {};
  }
}

}  // namespace

Result<SockDiag> SockDiag::open_in(int netns) {
  return SockDiag(TRY(socket_in_netns(netns, AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG)));
}

Result<void> SockDiag::dump_tcp(std::uint8_t family, std::uint32_t states,
                                std::vector<TcpSocketDiag>& out) {
  std::vector<char> buffer;
  inet_diag_req_v2* request = nullptr;
  const nlmsghdr* header = dump_request(buffer, ++sequence_, request);
  request->sdiag_family = family;
  request->sdiag_protocol = IPPROTO_TCP;
  request->idiag_states = states;
  return ask(fd_.get(), header, buffer, each_tcp, &out);
}

Result<std::vector<TcpSocketDiag>> SockDiag::tcp(std::uint32_t states) {
  std::vector<TcpSocketDiag> out;
  TRY(dump_tcp(AF_INET, states, out));
  TRY(dump_tcp(AF_INET6, states, out));
  return out;
}

Result<std::vector<UnixSocketDiag>> SockDiag::unix_sockets() {
  std::vector<char> buffer;
  unix_diag_req* request = nullptr;
  const nlmsghdr* header = dump_request(buffer, ++sequence_, request);
  request->sdiag_family = AF_UNIX;
  request->udiag_states = ~0u;
  request->udiag_show = UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN;
  std::vector<UnixSocketDiag> out;
  TRY(ask(fd_.get(), header, buffer, each_unix, &out));
  return out;
}

}  // namespace godwit::sys
