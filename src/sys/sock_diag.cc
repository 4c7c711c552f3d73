#include "sys/sock_diag.h"

#include <libmnl/libmnl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>

#include "sys/namespaces.h"

namespace godwit::sys {
namespace {

constexpr std::size_t buffer_bytes = 32 * 1024;

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

int each(const nlmsghdr* header, void* data) {
  const auto* diag = static_cast<const inet_diag_msg*>(mnl_nlmsg_get_payload(header));
  TcpSocketDiag& found = static_cast<std::vector<TcpSocketDiag>*>(data)->emplace_back();
  found.state = diag->idiag_state;
  found.inode = diag->idiag_inode;
  found.waiting = diag->idiag_rqueue;
  found.unacknowledged_bytes = diag->idiag_wqueue;
  found.peer = peer_of(*diag);
  return MNL_CB_OK;
}

}  // namespace

Result<SockDiag> SockDiag::open_in(int netns) {
  return SockDiag(TRY(socket_in_netns(netns, AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG)));
}

Result<void> SockDiag::dump(std::uint8_t family, std::uint32_t states,
                            std::vector<TcpSocketDiag>& out) {
  std::vector<char> buffer(buffer_bytes);
  nlmsghdr* header = mnl_nlmsg_put_header(buffer.data());
  header->nlmsg_type = SOCK_DIAG_BY_FAMILY;
  header->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  header->nlmsg_seq = ++sequence_;
  auto* request =
      static_cast<inet_diag_req_v2*>(mnl_nlmsg_put_extra_header(header, sizeof(inet_diag_req_v2)));
  request->sdiag_family = family;
  request->sdiag_protocol = IPPROTO_TCP;
  request->idiag_states = states;
  if (::send(fd_.get(), header, header->nlmsg_len, 0) < 0) return os_error("send(sock_diag)");
  while (true) {
    const ssize_t n = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (n < 0) return os_error("recv(sock_diag)");
    const int more =
        mnl_cb_run(buffer.data(), static_cast<std::size_t>(n), sequence_, 0, each, &out);
    if (more < 0) return os_error("sock_diag");
    if (more == MNL_CB_STOP) return {};
  }
}

Result<std::vector<TcpSocketDiag>> SockDiag::tcp(std::uint32_t states) {
  std::vector<TcpSocketDiag> out;
  TRY(dump(AF_INET, states, out));
  TRY(dump(AF_INET6, states, out));
  return out;
}

}  // namespace godwit::sys
