// Links, bridges, addresses, routes and rate limits by rtnetlink (libmnl), in whichever network
// namespace: a netlink socket belongs to the namespace in which it was opened, for good, so
// Netlink::open_in() is all that is needed to work in another one.
//
// Errors carry the request and, where the kernel gives one, its own words (extended ack).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "sys/net_address.h"

namespace godwit::sys {

// State of a bridge port. `disabled` drops all traffic silently, both ways, and the other end keeps
// its carrier; setting it takes 40 us. On a bridge without a spanning tree the kernel keeps no
// state but these two: the others turn into forwarding at once (br_port_state_selection), and are
// only ever seen on somebody else's bridge.
enum class PortState : std::uint8_t {
  disabled = 0,
  listening = 1,
  learning = 2,
  forwarding = 3,
  blocking = 4
};

struct VethEnd {
  std::string name;        // At most 15 bytes.
  std::optional<Mac> mac;  // Random if absent.
  int netns_fd = -1;       // -1: the namespace of the Netlink object.
};

struct Link {
  int index = 0;
  std::string name;
  std::string kind;  // "veth", "bridge"; empty for real devices.
  Mac mac;
  std::uint32_t mtu = 0;
  int master = 0;        // Index of the bridge; 0: none.
  bool up = false;       // Administratively.
  bool running = false;  // Has a carrier, too.
};

struct Route {
  std::optional<Ipv4Prefix> to;  // Absent: the default route.
  std::optional<Ipv4> gateway;
  std::string dev;               // May be empty where there is a gateway.
  std::optional<Ipv4> source;    // Preferred source address.
  std::uint32_t rto_min_ms = 0;  // TCP's smallest retransmission timeout; 0: the kernel's (200 ms).
  std::uint32_t table = 254;     // RT_TABLE_MAIN
};

class Netlink {
 public:
  static Result<Netlink> open();  // In the namespace of the calling thread.
  static Result<Netlink> open_in(int netns_fd);
  // `pid`: any process in the namespace, as /proc/PID/ns/net.
  static Result<Netlink> open_in_process(pid_t pid);

  // Not copyable, not for use by several threads at once.
  Netlink(Netlink&&) noexcept = default;
  Netlink& operator=(Netlink&&) noexcept = default;

  Result<void> add_veth(const VethEnd& a, const VethEnd& b);
  // No spanning tree, no forward delay, no multicast snooping: a plain switch.
  Result<void> add_bridge(const std::string& name, std::optional<Mac> mac = {});
  Result<void> delete_link(const std::string& name);  // Errc::not_found where there is none.

  Result<Link> link(const std::string& name);  // Errc::not_found
  Result<std::vector<Link>> links();
  Result<void> set_up(const std::string& name, bool up);
  Result<void> set_master(const std::string& name, const std::string& bridge);  // "": none
  Result<void> set_mac(const std::string& name, const Mac& mac);
  Result<void> set_mtu(const std::string& name, std::uint32_t mtu_bytes);
  Result<void> rename(const std::string& name, const std::string& to);
  Result<void> move_to(const std::string& name, int netns_fd);

  // Preconditions: the link is a port of a bridge and Link::running. A change of carrier, of
  // up/down or of the master puts the port back to forwarding, and the kernel reports a carrier
  // late, from a work queue: a gate that is closed before Link::running was seen may open by
  // itself.
  Result<void> set_port_state(const std::string& name, PortState state);
  // The same for callers in a hurry, with an index looked up before.
  Result<void> set_port_state(int index, PortState state);
  Result<PortState> port_state(const std::string& name);

  Result<void> add_address(const std::string& dev, const Ipv4Prefix& address);
  Result<void> delete_address(const std::string& dev, const Ipv4Prefix& address);
  Result<std::vector<Ipv4Prefix>> addresses(const std::string& dev = "");  // "": of all devices

  Result<void> replace_route(const Route& route);
  Result<void> delete_route(const Route& route);
  Result<std::vector<Route>> routes();  // Unicast, all tables but `local`.

  // A permanent neighbour entry: no ARP needed for `address` on `dev`.
  Result<void> replace_neighbour(const std::string& dev, Ipv4 address, const Mac& mac);
  Result<void> delete_neighbour(const std::string& dev, Ipv4 address);

  // How often an unknown neighbour is asked for, and how many times. (The kernel's: 1,000 ms, 3.)
  Result<void> set_neighbour_search(const std::string& dev, std::uint32_t retransmit_ms,
                                    std::uint32_t probes);

  // Token bucket on what leaves through `dev`. Zero takes the limit away.
  Result<void> set_rate(const std::string& dev, std::uint64_t bytes_per_s);

 private:
  explicit Netlink(UniqueFd fd) : fd_(std::move(fd)) {}
  Result<void> request(void* message, const std::string& what);
  Result<void> dump(void* message, const std::string& what,
                    const std::function<void(const void* message)>& each);
  Result<std::vector<Link>> fetch_links(const std::string& name);
  Result<int> index_of(const std::string& name);

  UniqueFd fd_;
  std::uint32_t sequence_ = 0;
};

// Descriptor of the network namespace of a process, or of the caller for pid 0.
Result<UniqueFd> open_netns(pid_t pid = 0);
Result<void> enter_netns(int netns_fd);  // The calling thread only, for good.

// Runs `work` (which returns a Result) on a thread of its own in the namespace: the caller's thread
// never leaves its own. For sockets and sysctls; for rtnetlink, Netlink::open_in is cheaper.
template <typename Work>
auto run_in_netns(int netns_fd, Work work) -> std::invoke_result_t<Work> {
  std::optional<std::invoke_result_t<Work>> result;
  std::thread([&] {
    Result<void> entered = enter_netns(netns_fd);
    if (entered.ok()) {
      result.emplace(work());
    } else {
      result.emplace(std::move(entered).error());
    }
  }).join();
  return std::move(*result);
}

}  // namespace godwit::sys
