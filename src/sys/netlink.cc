#include "sys/netlink.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <libmnl/libmnl.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace godwit::sys {
namespace {

constexpr std::size_t buffer_bytes = 32 * 1024;  // The kernel fills at most this much in a dump.
constexpr std::uint64_t tbf_latency_us = 50'000;

// A message under construction.
struct Message {
  alignas(NLMSG_ALIGNTO) std::array<char, 4096> bytes{};
  nlmsghdr* header;

  Message(std::uint16_t type, int flags) : header(mnl_nlmsg_put_header(bytes.data())) {
    header->nlmsg_type = type;
    header->nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
  }
  template <typename T>
  T* body() {
    return static_cast<T*>(mnl_nlmsg_put_extra_header(header, sizeof(T)));
  }
};

// libmnl's own loops over attributes are C macros that C++ refuses.
const nlattr* first_attr(const nlmsghdr* header, std::size_t skip) {
  return static_cast<const nlattr*>(mnl_nlmsg_get_payload_offset(header, skip));
}

template <typename Each>
void for_each_attr(const nlmsghdr* header, std::size_t skip, Each each) {
  const auto* end = static_cast<const char*>(mnl_nlmsg_get_payload_tail(header));
  for (const nlattr* attr = first_attr(header, skip);
       mnl_attr_ok(attr, static_cast<int>(end - reinterpret_cast<const char*>(attr)));
       attr = mnl_attr_next(attr))
    each(attr);
}

template <typename Each>
void for_each_nested(const nlattr* nest, Each each) {
  const auto* end =
      static_cast<const char*>(mnl_attr_get_payload(nest)) + mnl_attr_get_payload_len(nest);
  for (const auto* attr = static_cast<const nlattr*>(mnl_attr_get_payload(nest));
       mnl_attr_ok(attr, static_cast<int>(end - reinterpret_cast<const char*>(attr)));
       attr = mnl_attr_next(attr))
    each(attr);
}

void put_mac(nlmsghdr* header, const Mac& mac) {
  mnl_attr_put(header, IFLA_ADDRESS, mac.bytes.size(), mac.bytes.data());
}

Result<void> check_name(const std::string& name) {
  if (name.empty() || name.size() >= IFNAMSIZ)
    return make_error(Errc::invalid, "\"{}\" is no name for a link", name);
  return {};
}

// The kernel's own words on a refusal, which follow the copied header of the request.
std::string extended_ack(const nlmsghdr* header) {
  if ((header->nlmsg_flags & NLM_F_ACK_TLVS) == 0) return {};
  const auto* error = static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(header));
  std::size_t skip = sizeof(nlmsgerr);
  if ((header->nlmsg_flags & NLM_F_CAPPED) == 0) skip += error->msg.nlmsg_len - NLMSG_HDRLEN;
  std::string words;
  for_each_attr(header, skip, [&](const nlattr* attr) {
    if (mnl_attr_get_type(attr) == NLMSGERR_ATTR_MSG)
      words = fmt::format(" ({})", mnl_attr_get_str(attr));
  });
  return words;
}

Error request_error(const nlmsghdr* header, const std::string& what) {
  const auto* error = static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(header));
  int code = -error->error;
  Error made = os_error(what + extended_ack(header), code);
  if (code == ENODEV || code == ESRCH) return Error(Errc::not_found, made.what(), code);
  return made;
}

Link parse_link(const nlmsghdr* header) {
  const auto* info = static_cast<const ifinfomsg*>(mnl_nlmsg_get_payload(header));
  Link link;
  link.index = info->ifi_index;
  link.up = (info->ifi_flags & IFF_UP) != 0;
  link.running = (info->ifi_flags & IFF_RUNNING) != 0;
  for_each_attr(header, sizeof(*info), [&](const nlattr* attr) {
    switch (mnl_attr_get_type(attr)) {
      case IFLA_IFNAME:
        link.name = mnl_attr_get_str(attr);
        break;
      case IFLA_MTU:
        link.mtu = mnl_attr_get_u32(attr);
        break;
      case IFLA_MASTER:
        link.master = static_cast<int>(mnl_attr_get_u32(attr));
        break;
      case IFLA_ADDRESS:
        if (mnl_attr_get_payload_len(attr) == link.mac.bytes.size())
          std::memcpy(link.mac.bytes.data(), mnl_attr_get_payload(attr), link.mac.bytes.size());
        break;
      case IFLA_LINKINFO: {
        for_each_nested(attr, [&](const nlattr* inner) {
          if (mnl_attr_get_type(inner) == IFLA_INFO_KIND) link.kind = mnl_attr_get_str(inner);
        });
        break;
      }
      default:
        break;
    }
  });
  return link;
}

Ipv4 get_ipv4(const nlattr* attr) { return Ipv4{ntohl(mnl_attr_get_u32(attr))}; }
void put_ipv4(nlmsghdr* header, std::uint16_t type, Ipv4 address) {
  mnl_attr_put_u32(header, type, htonl(address.value));
}

}  // namespace

// --- The socket ---------------------------------------------------------------------------------

Result<UniqueFd> open_netns(pid_t pid) {
  std::string path = pid == 0 ? "/proc/thread-self/ns/net" : fmt::format("/proc/{}/ns/net", pid);
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return os_error(fmt::format("open({})", path));
  return UniqueFd(fd);
}

Result<void> enter_netns(int netns_fd) {
  if (::setns(netns_fd, CLONE_NEWNET) != 0)
    return os_error(fmt::format("setns(fd={}, CLONE_NEWNET)", netns_fd));
  return {};
}

Result<Netlink> Netlink::open() {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!fd) return os_error("socket(AF_NETLINK, NETLINK_ROUTE)");
  int on = 1;
  // Both only better the messages: a kernel without them is fine.
  (void)::setsockopt(fd.get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
  (void)::setsockopt(fd.get(), SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on));
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
    return os_error("bind(AF_NETLINK)");
  return Netlink(std::move(fd));
}

Result<Netlink> Netlink::open_in(int netns_fd) {
  return run_in_netns(netns_fd, [] { return Netlink::open(); });
}

Result<Netlink> Netlink::open_in_process(pid_t pid) {
  UniqueFd netns = TRY(open_netns(pid));
  return open_in(netns.get());
}

Result<void> Netlink::request(void* message, const std::string& what) {
  static_cast<nlmsghdr*>(message)->nlmsg_flags |= NLM_F_ACK;
  return dump(message, what, [](const void*) {});
}

// Sends one request and reads until its answer is complete: an acknowledgement, an error, or the
// end of a dump. The kernel answers in the caller's context, so this never waits for anybody.
Result<void> Netlink::dump(void* message, const std::string& what,
                           const std::function<void(const void* message)>& each) {
  auto* header = static_cast<nlmsghdr*>(message);
  header->nlmsg_seq = ++sequence_;
  if (::send(fd_.get(), header, header->nlmsg_len, 0) < 0) return os_error(what);

  alignas(NLMSG_ALIGNTO) std::array<char, buffer_bytes> buffer;
  while (true) {
    ssize_t got = ::recv(fd_.get(), buffer.data(), buffer.size(), MSG_TRUNC);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return os_error(what);
    if (static_cast<std::size_t>(got) > buffer.size())
      return make_error(Errc::internal, "{}: answer of {} bytes is too large", what, got);
    int left = static_cast<int>(got);
    for (auto* part = reinterpret_cast<const nlmsghdr*>(buffer.data()); mnl_nlmsg_ok(part, left);
         part = mnl_nlmsg_next(part, &left)) {
      if (part->nlmsg_seq != sequence_) continue;  // The rest of a request given up before.
      if (part->nlmsg_type == NLMSG_ERROR) {
        if (static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(part))->error != 0)
          return request_error(part, what);
        return {};
      }
      if (part->nlmsg_type == NLMSG_DONE) return {};
      each(part);
    }
  }
}

// --- Links --------------------------------------------------------------------------------------

Result<int> Netlink::index_of(const std::string& name) { return TRY(link(name)).index; }

Result<std::vector<Link>> Netlink::fetch_links(const std::string& name) {
  Message message(RTM_GETLINK, name.empty() ? NLM_F_DUMP : NLM_F_ACK);
  message.body<ifinfomsg>()->ifi_family = AF_UNSPEC;
  if (!name.empty()) {
    TRY(check_name(name));
    mnl_attr_put_strz(message.header, IFLA_IFNAME, name.c_str());
  }
  std::vector<Link> found;
  TRY(dump(
      message.header, fmt::format("get link {}", name.empty() ? "*" : name),
      [&](const void* part) { found.push_back(parse_link(static_cast<const nlmsghdr*>(part))); }));
  return found;
}

Result<Link> Netlink::link(const std::string& name) {
  std::vector<Link> found = TRY(fetch_links(name));
  if (found.size() != 1) return make_error(Errc::not_found, "no link {}", name);
  return found[0];
}

Result<std::vector<Link>> Netlink::links() { return fetch_links(""); }

Result<void> Netlink::add_veth(const VethEnd& a, const VethEnd& b) {
  TRY(check_name(a.name));
  TRY(check_name(b.name));
  Message message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
  nlmsghdr* header = message.header;
  message.body<ifinfomsg>();
  auto put_end = [&](const VethEnd& end) {
    mnl_attr_put_strz(header, IFLA_IFNAME, end.name.c_str());
    if (end.mac) put_mac(header, *end.mac);
    if (end.netns_fd >= 0)
      mnl_attr_put_u32(header, IFLA_NET_NS_FD, static_cast<std::uint32_t>(end.netns_fd));
  };
  put_end(a);
  nlattr* info = mnl_attr_nest_start(header, IFLA_LINKINFO);
  mnl_attr_put_strz(header, IFLA_INFO_KIND, "veth");
  nlattr* data = mnl_attr_nest_start(header, IFLA_INFO_DATA);
  nlattr* peer = mnl_attr_nest_start(header, VETH_INFO_PEER);
  message.body<ifinfomsg>();
  put_end(b);
  mnl_attr_nest_end(header, peer);
  mnl_attr_nest_end(header, data);
  mnl_attr_nest_end(header, info);
  return request(header, fmt::format("add veth {} - {}", a.name, b.name));
}

Result<void> Netlink::add_bridge(const std::string& name, std::optional<Mac> mac) {
  TRY(check_name(name));
  Message message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
  nlmsghdr* header = message.header;
  message.body<ifinfomsg>();
  mnl_attr_put_strz(header, IFLA_IFNAME, name.c_str());
  if (mac) put_mac(header, *mac);
  nlattr* info = mnl_attr_nest_start(header, IFLA_LINKINFO);
  mnl_attr_put_strz(header, IFLA_INFO_KIND, "bridge");
  nlattr* data = mnl_attr_nest_start(header, IFLA_INFO_DATA);
  mnl_attr_put_u32(header, IFLA_BR_FORWARD_DELAY, 0);
  mnl_attr_put_u32(header, IFLA_BR_STP_STATE, 0);
  mnl_attr_put_u8(header, IFLA_BR_MCAST_SNOOPING, 0);
  mnl_attr_nest_end(header, data);
  mnl_attr_nest_end(header, info);
  return request(header, fmt::format("add bridge {}", name));
}

Result<void> Netlink::delete_link(const std::string& name) {
  int index = TRY(index_of(name));
  Message message(RTM_DELLINK, 0);
  message.body<ifinfomsg>()->ifi_index = index;
  return request(message.header, fmt::format("delete link {}", name));
}

Result<void> Netlink::set_up(const std::string& name, bool up) {
  int index = TRY(index_of(name));
  Message message(RTM_NEWLINK, 0);
  auto* info = message.body<ifinfomsg>();
  info->ifi_index = index;
  info->ifi_change = IFF_UP;
  info->ifi_flags = up ? IFF_UP : 0;
  return request(message.header, fmt::format("set link {} {}", name, up ? "up" : "down"));
}

Result<void> Netlink::set_master(const std::string& name, const std::string& bridge) {
  int index = TRY(index_of(name));
  int master = bridge.empty() ? 0 : TRY(index_of(bridge));
  Message message(RTM_NEWLINK, 0);
  message.body<ifinfomsg>()->ifi_index = index;
  mnl_attr_put_u32(message.header, IFLA_MASTER, static_cast<std::uint32_t>(master));
  return request(message.header, fmt::format("set link {} master \"{}\"", name, bridge));
}

Result<void> Netlink::set_mac(const std::string& name, const Mac& mac) {
  int index = TRY(index_of(name));
  Message message(RTM_NEWLINK, 0);
  message.body<ifinfomsg>()->ifi_index = index;
  put_mac(message.header, mac);
  return request(message.header, fmt::format("set link {} address {}", name, to_string(mac)));
}

Result<void> Netlink::set_mtu(const std::string& name, std::uint32_t mtu_bytes) {
  int index = TRY(index_of(name));
  Message message(RTM_NEWLINK, 0);
  message.body<ifinfomsg>()->ifi_index = index;
  mnl_attr_put_u32(message.header, IFLA_MTU, mtu_bytes);
  return request(message.header, fmt::format("set link {} mtu {}", name, mtu_bytes));
}

Result<void> Netlink::rename(const std::string& name, const std::string& to) {
  TRY(check_name(to));
  int index = TRY(index_of(name));
  Message message(RTM_NEWLINK, 0);
  message.body<ifinfomsg>()->ifi_index = index;
  mnl_attr_put_strz(message.header, IFLA_IFNAME, to.c_str());
  return request(message.header, fmt::format("rename link {} to {}", name, to));
}

Result<void> Netlink::move_to(const std::string& name, int netns_fd) {
  int index = TRY(index_of(name));
  Message message(RTM_NEWLINK, 0);
  message.body<ifinfomsg>()->ifi_index = index;
  mnl_attr_put_u32(message.header, IFLA_NET_NS_FD, static_cast<std::uint32_t>(netns_fd));
  return request(message.header, fmt::format("move link {} to netns fd {}", name, netns_fd));
}

Result<void> Netlink::set_port_state(const std::string& name, PortState state) {
  return set_port_state(TRY(index_of(name)), state).with(name);
}

Result<void> Netlink::set_port_state(int index, PortState state) {
  Message message(RTM_SETLINK, 0);
  auto* info = message.body<ifinfomsg>();
  info->ifi_family = AF_BRIDGE;
  info->ifi_index = index;
  nlattr* port = mnl_attr_nest_start(message.header, IFLA_PROTINFO | NLA_F_NESTED);
  mnl_attr_put_u8(message.header, IFLA_BRPORT_STATE, static_cast<std::uint8_t>(state));
  mnl_attr_nest_end(message.header, port);
  return request(message.header,
                 fmt::format("set state of bridge port {} to {}", index, static_cast<int>(state)));
}

Result<PortState> Netlink::port_state(const std::string& name) {
  int index = TRY(index_of(name));
  Message message(RTM_GETLINK, NLM_F_DUMP);  // The bridge family answers dumps only.
  message.body<ifinfomsg>()->ifi_family = AF_BRIDGE;
  std::optional<PortState> state;
  TRY(dump(message.header, fmt::format("get bridge port {}", name), [&](const void* part) {
    const auto* header = static_cast<const nlmsghdr*>(part);
    const auto* info = static_cast<const ifinfomsg*>(mnl_nlmsg_get_payload(header));
    if (info->ifi_index != index) return;
    for_each_attr(header, sizeof(*info), [&](const nlattr* attr) {
      if (mnl_attr_get_type(attr) != IFLA_PROTINFO) return;
      for_each_nested(attr, [&](const nlattr* inner) {
        if (mnl_attr_get_type(inner) == IFLA_BRPORT_STATE)
          state = static_cast<PortState>(mnl_attr_get_u8(inner));
      });
    });
  }));
  if (!state) return make_error(Errc::not_found, "{} is no port of a bridge", name);
  return *state;
}

// --- Addresses, routes, neighbours
// ----------------------------------------------------------------

namespace {
void fill_address(Message& message, int index, const Ipv4Prefix& address) {
  auto* body = message.body<ifaddrmsg>();
  body->ifa_family = AF_INET;
  body->ifa_prefixlen = static_cast<std::uint8_t>(address.length);
  body->ifa_index = static_cast<std::uint32_t>(index);
  put_ipv4(message.header, IFA_LOCAL, address.address);
  put_ipv4(message.header, IFA_ADDRESS, address.address);
}

void fill_route(Message& message, const Route& route, int index) {
  auto* body = message.body<rtmsg>();
  body->rtm_family = AF_INET;
  body->rtm_dst_len = static_cast<std::uint8_t>(route.to ? route.to->length : 0);
  body->rtm_table = static_cast<std::uint8_t>(route.table < 256 ? route.table : RT_TABLE_UNSPEC);
  body->rtm_protocol = RTPROT_STATIC;
  body->rtm_scope = route.gateway ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
  body->rtm_type = RTN_UNICAST;
  nlmsghdr* header = message.header;
  mnl_attr_put_u32(header, RTA_TABLE, route.table);
  if (route.to) put_ipv4(header, RTA_DST, route.to->network());
  if (route.gateway) put_ipv4(header, RTA_GATEWAY, *route.gateway);
  if (index != 0) mnl_attr_put_u32(header, RTA_OIF, static_cast<std::uint32_t>(index));
  if (route.source) put_ipv4(header, RTA_PREFSRC, *route.source);
  if (route.rto_min_ms != 0) {
    nlattr* metrics = mnl_attr_nest_start(header, RTA_METRICS);
    // TCP asks for a smallest timeout only where it is "locked".
    mnl_attr_put_u32(header, RTAX_LOCK, 1U << RTAX_RTO_MIN);
    mnl_attr_put_u32(header, RTAX_RTO_MIN, route.rto_min_ms);
    mnl_attr_nest_end(header, metrics);
  }
}

std::string describe(const Route& route) {
  return fmt::format("{}{}{}", route.to ? to_string(*route.to) : "default",
                     route.gateway ? " via " + to_string(*route.gateway) : "",
                     route.dev.empty() ? "" : " dev " + route.dev);
}

Route parse_route(const nlmsghdr* header, std::uint32_t& index) {
  const auto* body = static_cast<const rtmsg*>(mnl_nlmsg_get_payload(header));
  Route route;
  route.table = body->rtm_table;
  for_each_attr(header, sizeof(*body), [&](const nlattr* attr) {
    switch (mnl_attr_get_type(attr)) {
      case RTA_TABLE:
        route.table = mnl_attr_get_u32(attr);
        break;
      case RTA_DST:
        route.to = Ipv4Prefix{get_ipv4(attr), body->rtm_dst_len};
        break;
      case RTA_GATEWAY:
        route.gateway = get_ipv4(attr);
        break;
      case RTA_PREFSRC:
        route.source = get_ipv4(attr);
        break;
      case RTA_OIF:
        index = mnl_attr_get_u32(attr);
        break;
      case RTA_METRICS: {
        for_each_nested(attr, [&](const nlattr* inner) {
          if (mnl_attr_get_type(inner) == RTAX_RTO_MIN) route.rto_min_ms = mnl_attr_get_u32(inner);
        });
        break;
      }
      default:
        break;
    }
  });
  return route;
}

void fill_neighbour(Message& message, int index, Ipv4 address) {
  auto* body = message.body<ndmsg>();
  body->ndm_family = AF_INET;
  body->ndm_ifindex = index;
  body->ndm_state = NUD_PERMANENT;
  put_ipv4(message.header, NDA_DST, address);
}
}  // namespace

Result<void> Netlink::add_address(const std::string& dev, const Ipv4Prefix& address) {
  int index = TRY(index_of(dev));
  Message message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
  fill_address(message, index, address);
  return request(message.header, fmt::format("add address {} dev {}", to_string(address), dev));
}

Result<void> Netlink::delete_address(const std::string& dev, const Ipv4Prefix& address) {
  int index = TRY(index_of(dev));
  Message message(RTM_DELADDR, 0);
  fill_address(message, index, address);
  return request(message.header, fmt::format("delete address {} dev {}", to_string(address), dev));
}

Result<std::vector<Ipv4Prefix>> Netlink::addresses(const std::string& dev) {
  std::uint32_t index = dev.empty() ? 0 : static_cast<std::uint32_t>(TRY(index_of(dev)));
  Message message(RTM_GETADDR, NLM_F_DUMP);
  message.body<ifaddrmsg>()->ifa_family = AF_INET;
  std::vector<Ipv4Prefix> found;
  TRY(dump(message.header, "get addresses", [&](const void* part) {
    const auto* header = static_cast<const nlmsghdr*>(part);
    const auto* body = static_cast<const ifaddrmsg*>(mnl_nlmsg_get_payload(header));
    if (index != 0 && body->ifa_index != index) return;
    for_each_attr(header, sizeof(*body), [&](const nlattr* attr) {
      if (mnl_attr_get_type(attr) == IFA_LOCAL)
        found.push_back({get_ipv4(attr), body->ifa_prefixlen});
    });
  }));
  return found;
}

Result<void> Netlink::replace_route(const Route& route) {
  int index = route.dev.empty() ? 0 : TRY(index_of(route.dev));
  Message message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
  fill_route(message, route, index);
  return request(message.header, "replace route " + describe(route));
}

Result<void> Netlink::delete_route(const Route& route) {
  int index = route.dev.empty() ? 0 : TRY(index_of(route.dev));
  Message message(RTM_DELROUTE, 0);
  fill_route(message, route, index);
  return request(message.header, "delete route " + describe(route));
}

Result<std::vector<Route>> Netlink::routes() {
  std::vector<Link> all = TRY(links());
  Message message(RTM_GETROUTE, NLM_F_DUMP);
  message.body<rtmsg>()->rtm_family = AF_INET;
  std::vector<Route> found;
  TRY(dump(message.header, "get routes", [&](const void* part) {
    const auto* header = static_cast<const nlmsghdr*>(part);
    const auto* body = static_cast<const rtmsg*>(mnl_nlmsg_get_payload(header));
    std::uint32_t index = 0;
    Route route = parse_route(header, index);
    if (body->rtm_type != RTN_UNICAST || route.table == RT_TABLE_LOCAL) return;
    for (const Link& link : all)
      if (static_cast<std::uint32_t>(link.index) == index) route.dev = link.name;
    found.push_back(std::move(route));
  }));
  return found;
}

Result<void> Netlink::replace_neighbour(const std::string& dev, Ipv4 address, const Mac& mac) {
  int index = TRY(index_of(dev));
  Message message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE);
  fill_neighbour(message, index, address);
  mnl_attr_put(message.header, NDA_LLADDR, mac.bytes.size(), mac.bytes.data());
  return request(message.header,
                 fmt::format("replace neighbour {} dev {}", to_string(address), dev));
}

Result<void> Netlink::delete_neighbour(const std::string& dev, Ipv4 address) {
  int index = TRY(index_of(dev));
  Message message(RTM_DELNEIGH, 0);
  fill_neighbour(message, index, address);
  return request(message.header,
                 fmt::format("delete neighbour {} dev {}", to_string(address), dev));
}

Result<void> Netlink::set_neighbour_search(const std::string& dev, std::uint32_t retransmit_ms,
                                           std::uint32_t probes) {
  int index = TRY(index_of(dev));
  Message message(RTM_SETNEIGHTBL, NLM_F_REPLACE);
  message.body<ndtmsg>()->ndtm_family = AF_INET;
  mnl_attr_put_strz(message.header, NDTA_NAME, "arp_cache");
  nlattr* parameters = mnl_attr_nest_start(message.header, NDTA_PARMS);
  mnl_attr_put_u32(message.header, NDTPA_IFINDEX, static_cast<std::uint32_t>(index));
  mnl_attr_put_u64(message.header, NDTPA_RETRANS_TIME, retransmit_ms);
  mnl_attr_put_u32(message.header, NDTPA_MCAST_PROBES, probes);
  mnl_attr_nest_end(message.header, parameters);
  return request(message.header, fmt::format("set neighbour search of {}", dev));
}

// The bucket holds 4 ms at the rate, and at least four full GSO packets: a veth hands over packets
// of up to 64 KiB, and one that exceeds the bucket would be cut into pieces on the processor.
// The queue holds 50 ms at the rate, as a switch with ordinary buffers would.
Result<void> Netlink::set_rate(const std::string& dev, std::uint64_t bytes_per_s) {
  int index = TRY(index_of(dev));
  Message message(bytes_per_s == 0 ? RTM_DELQDISC : RTM_NEWQDISC,
                  bytes_per_s == 0 ? 0 : NLM_F_CREATE | NLM_F_REPLACE);
  auto* body = message.body<tcmsg>();
  body->tcm_family = AF_UNSPEC;
  body->tcm_ifindex = index;
  body->tcm_parent = TC_H_ROOT;
  nlmsghdr* header = message.header;
  std::string what = fmt::format("set rate of {} to {} B/s", dev, bytes_per_s);
  if (bytes_per_s == 0) {
    Result<void> removed = request(header, what);
    // There was no limit: that is what was asked for.
    if (!removed.ok() &&
        (removed.error().sys_errno() == ENOENT || removed.error().sys_errno() == EINVAL))
      return {};
    return removed;
  }
  body->tcm_handle = 0x10000;  // "1:"
  mnl_attr_put_strz(header, TCA_KIND, "tbf");
  nlattr* options = mnl_attr_nest_start(header, TCA_OPTIONS);
  std::uint32_t burst = static_cast<std::uint32_t>(
      std::clamp<std::uint64_t>(bytes_per_s / 250, 256 * 1024, 64 * 1024 * 1024));
  tc_tbf_qopt shape{};
  shape.rate.rate = static_cast<std::uint32_t>(std::min<std::uint64_t>(bytes_per_s, ~0U));
  shape.rate.linklayer = TC_LINKLAYER_ETHERNET;
  shape.limit = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(bytes_per_s * tbf_latency_us / 1'000'000 + burst, 1U << 30));
  mnl_attr_put(header, TCA_TBF_PARMS, sizeof(shape), &shape);
  mnl_attr_put_u64(header, TCA_TBF_RATE64, bytes_per_s);
  mnl_attr_put_u32(header, TCA_TBF_BURST, burst);
  mnl_attr_nest_end(header, options);
  return request(header, what);
}

}  // namespace godwit::sys
