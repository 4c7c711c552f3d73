#include "local/node_network.h"

#include <fcntl.h>

#include "base/io.h"

namespace godwit::local {
namespace {

// Between nodes of one cluster; the least that godwit wants on its links, since a packet dropped
// while an address moves is sent again after this time.
constexpr std::uint32_t rto_min_ms = 5;

// Locally administered, unique in the segment: the address behind 02:67 ("g") and what it is of.
sys::Mac mac_of(sys::Ipv4 address, std::uint8_t role) {
  sys::Mac mac;
  mac.bytes = {0x02, role};
  for (std::size_t i = 0; i < 4; ++i)
    mac.bytes[2 + i] = static_cast<std::uint8_t>(address.value >> (24 - 8 * i));
  return mac;
}
constexpr std::uint8_t role_bridge = 0x67;
constexpr std::uint8_t role_uplink = 0x68;

}  // namespace

Result<void> make_switch() {
  // No address of the switch's own, and none that appears by itself.
  for (const char* scope : {"all", "default"}) {
    Result<void> off =
        write_file(fmt::format("/proc/sys/net/ipv6/conf/{}/disable_ipv6", scope), "1");
    if (!off.ok() && off.error().sys_errno() != ENOENT) return off;  // No IPv6 here at all.
  }
  sys::Netlink netlink = TRY(sys::Netlink::open());
  TRY(netlink.add_bridge(switch_bridge));
  return netlink.set_up(switch_bridge, true);
}

Result<void> connect_node(const ClusterState& cluster, const NodeState& node, int switch_netns_fd) {
  UniqueFd here = TRY(sys::open_netns());
  sys::Netlink mine = TRY(sys::Netlink::open());
  sys::Netlink theirs = TRY(sys::Netlink::open_in(switch_netns_fd));
  const std::string& port = node.node.value;

  TRY(mine.set_up("lo", true));
  // A node that was just killed: its link goes with its namespace, which the kernel takes apart
  // later.
  Result<void> stale = theirs.delete_link(port);
  if (!stale.ok() && stale.error().code() != Errc::not_found) return stale;
  TRY(theirs.add_veth({port, {}, -1},
                      {node_uplink, mac_of(node.address, role_uplink), here.get()}));
  TRY(theirs.set_master(port, switch_bridge));
  TRY(theirs.set_up(port, true));

  // A MAC of its own, else the bridge's would follow those of capsules that come and go.
  TRY(mine.add_bridge(node_bridge, mac_of(node.address, role_bridge)));
  TRY(mine.set_master(node_uplink, node_bridge));
  TRY(mine.set_up(node_uplink, true));
  TRY(mine.set_up(node_bridge, true));
  TRY(mine.add_address(node_bridge, {node.address, cluster.network.length}));
  sys::Route route;
  route.to = cluster.network;
  route.dev = node_bridge;
  route.source = node.address;
  route.rto_min_ms = rto_min_ms;
  TRY(mine.replace_route(route));
  return limit_link(switch_netns_fd, here.get(), node.node, cluster.bandwidth_bits_per_s);
}

Result<void> limit_link(int switch_netns_fd, int node_netns_fd, const NodeId& node,
                        std::uint64_t bits_per_s) {
  sys::Netlink outer = TRY(sys::Netlink::open_in(switch_netns_fd));
  sys::Netlink inner = TRY(sys::Netlink::open_in(node_netns_fd));
  TRY(outer.set_rate(node.value, bits_per_s / 8));
  return inner.set_rate(node_uplink, bits_per_s / 8);
}

}  // namespace godwit::local
