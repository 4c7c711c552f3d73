#include "sockets/netlink_sockets.h"

#include <linux/netlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace godwit::sockets {
namespace {

constexpr std::uint32_t bits = 32;

sockaddr_nl address_of(const std::string& bytes) {
  sockaddr_nl address{};
  std::memcpy(&address, bytes.data(), std::min(bytes.size(), sizeof address));
  return address;
}

}  // namespace

// Others have rules, queues or connections behind them.
std::string reason_against_netlink(int protocol) {
  for (int plain : {NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_KOBJECT_UEVENT, NETLINK_GENERIC})
    if (protocol == plain) return "";
  return fmt::format("is a netlink socket of protocol {}, which can't move yet", protocol);
}

Result<void> describe_netlink(int socket, image::Socket& out) {
  socklen_t bytes = 0;
  // The first call tells how many there can be.
  if (::getsockopt(socket, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, nullptr, &bytes) != 0)
    return os_error("getsockopt(NETLINK_LIST_MEMBERSHIPS)");
  std::vector<std::uint32_t> groups((bytes + sizeof(std::uint32_t) - 1) / sizeof(std::uint32_t));
  bytes = static_cast<socklen_t>(groups.size() * sizeof(std::uint32_t));
  if (::getsockopt(socket, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups.data(), &bytes) != 0)
    return os_error("getsockopt(NETLINK_LIST_MEMBERSHIPS)");
  for (std::uint32_t group = 0; group < groups.size() * bits; ++group)
    if ((groups[group / bits] >> (group % bits) & 1) != 0) out.add_netlink_groups(group + 1);
  return {};
}

Result<void> restore_netlink(int socket, const image::Socket& image) {
  sockaddr_nl local = address_of(image.local());
  const sockaddr_nl peer = address_of(image.peer());
  local.nl_groups = 0;  // All of them come below, also those beyond the 32 of an address.
  if (local.nl_pid != 0 &&
      ::bind(socket, reinterpret_cast<const sockaddr*>(&local), sizeof local) != 0)
    return os_error(fmt::format("bind(netlink, {})", local.nl_pid));
  for (std::uint32_t group : image.netlink_groups())
    if (::setsockopt(socket, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) != 0)
      return os_error(fmt::format("setsockopt(NETLINK_ADD_MEMBERSHIP, {})", group));
  if ((peer.nl_pid != 0 || peer.nl_groups != 0) &&
      ::connect(socket, reinterpret_cast<const sockaddr*>(&peer), sizeof peer) != 0)
    return os_error("connect(netlink)");
  return {};
}

}  // namespace godwit::sockets
