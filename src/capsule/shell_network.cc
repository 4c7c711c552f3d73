// A capsule's network: a veth pair whose outer end is a port of the node's bridge.
//
// The gate is the state of that port (40 us by rtnetlink), not link up and down, which wakes late,
// and not a packet filter. The kernel opens a port when its link gets a carrier, and reports a
// carrier from a work queue: so the link is brought up without address, which keeps it silent (IPv6
// makes no address of its own either, see the starter), the carrier is waited for, the port is
// closed, and then the address comes. So a spare's link can be up long before its capsule is known.
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <sched.h>
#include <sys/socket.h>

#include <cstring>
#include <ctime>

#include "base/clock.h"
#include "capsule/shell.h"
#include "sys/namespaces.h"

namespace godwit::capsule {
namespace {

constexpr const char* inner_name = "eth0";
// What a move loses of a connection is sent again after this, instead of 200 ms.
constexpr std::uint32_t rto_min_ms = 5;
// A capsule comes to its new node without knowing its neighbours, and one of them may be moving as
// well: who asks must ask again soon. For 3 s in all, as usual.
constexpr std::uint32_t search_ms = 20, search_count = 150;
constexpr std::int64_t carrier_us_max = 30'000'000;
constexpr std::size_t link_name_max = 15;
constexpr long poll_ns = 100'000;

struct [[gnu::packed]] ArpFrame {
  std::uint8_t to[6];
  std::uint8_t from[6];
  std::uint16_t ethertype;
  std::uint16_t hardware;
  std::uint16_t protocol;
  std::uint8_t hardware_bytes;
  std::uint8_t protocol_bytes;
  std::uint16_t operation;
  std::uint8_t sender_mac[6];
  std::uint32_t sender_ip;
  std::uint8_t target_mac[6];
  std::uint32_t target_ip;
};
static_assert(sizeof(ArpFrame) == 42);

Result<void> wait_for_carrier(sys::Netlink& netlink, const std::string& name) {
  std::int64_t deadline_us = monotonic_us() + carrier_us_max;
  while (true) {
    sys::Link link = TRY(netlink.link(name));
    if (link.running) return {};
    if (monotonic_us() > deadline_us)
      return make_error(Errc::timeout, "{} has no carrier after {} us", name, carrier_us_max);
    timespec pause{0, poll_ns};
    ::nanosleep(&pause, nullptr);
  }
}

}  // namespace

std::string Shell::link_name_of(const std::string& serial) { return "gw" + serial; }

// Nothing where the node has no bridge (yet: settle_network looks again).
Result<void> Shell::make_link() {
  if (env_.bridge.empty()) return {};
  sys::Netlink node = TRY(sys::Netlink::open());
  Result<sys::Link> bridge = node.link(env_.bridge);
  if (!bridge.ok() && bridge.error().code() == Errc::not_found) return {};
  if (!bridge.ok()) return std::move(bridge).error();

  UniqueFd netns = TRY(sys::open_namespace(init_->init_pid(), "net"));
  std::string outer = link_name();
  INVARIANT(outer.size() <= link_name_max, "link={}", outer);
  TRY(node.add_veth({outer, {}, -1}, {inner_name, {}, netns.get()}));
  sys::Netlink inside = TRY(sys::Netlink::open_in(netns.get()));
  if (bridge->mtu != 0) {
    TRY(node.set_mtu(outer, bridge->mtu));
    TRY(inside.set_mtu(inner_name, bridge->mtu));
  }
  TRY(node.set_master(outer, env_.bridge));
  TRY(node.set_up(outer, true));
  TRY(inside.set_up(inner_name, true));
  TRY(wait_for_carrier(node, outer));
  return node.set_port_state(outer, sys::PortState::disabled);
}

Result<void> Shell::settle_network() {
  if (spec_.ip().empty()) return {};
  TRY(open_network());
  if (outer_index_ == 0) {
    TRY(make_link());
    TRY(open_network());
  }
  if (outer_index_ == 0) return {};
  UniqueFd netns = TRY(sys::open_namespace(init_->init_pid(), "net"));
  sys::Netlink inside = TRY(sys::Netlink::open_in(netns.get()));
  if (!spec_.mac().empty()) TRY(inside.set_mac(inner_name, TRY(sys::parse_mac(spec_.mac()))));
  sys::Ipv4Prefix address;
  address.address = TRY(sys::parse_ipv4(spec_.ip()));
  address.length = spec_.prefix_len() == 0 ? 32 : static_cast<int>(spec_.prefix_len());
  TRY(inside.add_address(inner_name, address));
  TRY(inside.set_neighbour_search(inner_name, search_ms, search_count));
  if (address.length < 32) {
    // In place of the one that comes with the address: whom it reaches are capsules, too.
    sys::Route others;
    others.to = sys::Ipv4Prefix{address.network(), address.length};
    others.dev = inner_name;
    others.source = address.address;
    others.rto_min_ms = rto_min_ms;
    TRY(inside.replace_route(others));
  }
  std::vector<sys::Ipv4Prefix> gateways = TRY(network_->addresses(env_.bridge));
  if (!gateways.empty()) {
    sys::Ipv4 gateway = gateways.front().address;
    // With a prefix of its own the capsule doesn't see the bridge on its link: say so first.
    if (!address.contains(gateway)) {
      sys::Route to_bridge;
      to_bridge.to = sys::Ipv4Prefix{gateway, 32};
      to_bridge.dev = inner_name;
      TRY(inside.replace_route(to_bridge));
    }
    sys::Route out;
    out.gateway = gateway;
    out.dev = inner_name;
    TRY(inside.replace_route(out));
  }
  return open_arp();
}

Result<void> Shell::open_network() {
  if (spec_.ip().empty()) return {};
  network_.emplace(TRY(sys::Netlink::open()));
  Result<sys::Link> outer = network_->link(link_name());
  if (outer.ok()) outer_index_ = outer->index;
  if (!outer.ok() && outer.error().code() != Errc::not_found) return std::move(outer).error();
  return {};
}

Result<void> Shell::open_arp() {
  UniqueFd netns = TRY(sys::open_namespace(init_->init_pid(), "net"));
  sys::Netlink inside = TRY(sys::Netlink::open_in(netns.get()));
  sys::Link inner = TRY(inside.link(inner_name));
  inner_index_ = inner.index;
  inner_mac_ = inner.mac;
  // Protocol 0: nothing is ever delivered to it.
  arp_ = TRY(sys::socket_in_netns(netns.get(), AF_PACKET, SOCK_RAW, 0));
  return {};
}

Result<void> Shell::gate(bool open) {
  if (outer_index_ == 0) return {};
  return network_->set_port_state(outer_index_,
                                  open ? sys::PortState::forwarding : sys::PortState::disabled);
}

Result<void> Shell::announce() {
  if (outer_index_ == 0) return {};
  if (!arp_.valid()) TRY(open_arp().with("announce"));
  sys::Ipv4 ip = TRY(sys::parse_ipv4(spec_.ip()));
  ArpFrame frame{};
  std::memset(frame.to, 0xff, sizeof(frame.to));
  std::memcpy(frame.from, inner_mac_.bytes.data(), sizeof(frame.from));
  std::memcpy(frame.sender_mac, inner_mac_.bytes.data(), sizeof(frame.sender_mac));
  frame.ethertype = htons(ETHERTYPE_ARP);
  frame.hardware = htons(ARPHRD_ETHER);
  frame.protocol = htons(ETHERTYPE_IP);
  frame.hardware_bytes = 6;
  frame.protocol_bytes = 4;
  frame.sender_ip = frame.target_ip = htonl(ip.value);
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_ifindex = inner_index_;
  // Some switches and kernels learn from requests only, some from replies only.
  for (int operation : {ARPOP_REQUEST, ARPOP_REPLY}) {
    frame.operation = htons(static_cast<std::uint16_t>(operation));
    if (::sendto(arp_.get(), &frame, sizeof(frame), 0, reinterpret_cast<const sockaddr*>(&to),
                 sizeof(to)) != static_cast<ssize_t>(sizeof(frame)))
      return os_error(fmt::format("announce {}", spec_.ip()));
  }
  return {};
}

}  // namespace godwit::capsule
