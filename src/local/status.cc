#include <charconv>
#include <nlohmann/json.hpp>

#include "local/local_cluster.h"
#include "local/nodes.h"
#include "sys/namespaces.h"

namespace godwit::local {
namespace {

NodeStatus status_of(const ClusterState& cluster, const NodeState& node, sys::Netlink* ports) {
  NodeStatus status;
  status.node = node.node;
  status.init_pid = init_pid(cluster.name, node.node);
  status.running = status.init_pid != 0;
  status.daemon_pid = daemon_pid(cluster.name, node.node);
  status.daemon_running = status.daemon_pid != 0;
  status.daemon_answers = status.daemon_running && daemon_answers(cluster.name, node.node);
  if (ports != nullptr) {
    Result<sys::PortState> state = ports->port_state(node.node.value);
    status.link_up = state.ok() && *state == sys::PortState::forwarding;
  }
  status.address = sys::to_string(node.address);
  status.socket = daemon_socket(cluster.name, node.node);
  status.log_path = daemon_log(cluster.name, node.node);
  status.cgroup = node_cgroup(cluster.name, node.node);
  status.cores = node.cores;
  status.speed = node.speed;
  status.memory_bytes = node.memory_bytes;
  if (status.running) {
    constexpr std::int64_t ns_per_s = 1'000'000'000;
    Result<sys::TimeOffsets> offsets = sys::time_offsets_of(status.init_pid);
    if (offsets.ok()) status.clock_offset_s = offsets->monotonic_ns / ns_per_s;
  }
  return status;
}

struct Unit {
  const char* name;
  std::uint64_t factor;
};

Result<std::uint64_t> parse_with_unit(const std::string& text, std::initializer_list<Unit> units) {
  double value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  for (const Unit& each : units) {
    if (error != std::errc{} || unit != each.name) continue;
    double product = value * static_cast<double>(each.factor);
    if (product >= 0 && product < 1e18) return static_cast<std::uint64_t>(product);
  }
  std::string known;
  for (const Unit& each : units) known += fmt::format("{}{}", known.empty() ? "" : ", ", each.name);
  return make_error(Errc::invalid, "\"{}\" is no number with one of the units {}", text, known);
}

}  // namespace

Result<void> check_cluster_name(const std::string& name) {
  constexpr std::size_t length_max = 24;  // Paths of sockets have at most 107 bytes.
  bool good = !name.empty() && name.size() <= length_max && name[0] >= 'a' && name[0] <= 'z';
  for (char c : name) good = good && ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-');
  if (good) return {};
  return make_error(Errc::invalid,
                    "\"{}\" is no name for a cluster: at most {} of a-z, 0-9 and -, a letter first",
                    name, length_max);
}

Result<std::uint64_t> parse_bytes(const std::string& text) {
  constexpr std::uint64_t k = 1024;
  return parse_with_unit(text, {{"", 1},
                                {"K", k},
                                {"M", k * k},
                                {"G", k * k * k},
                                {"T", k * k * k * k},
                                {"KiB", k},
                                {"MiB", k * k},
                                {"GiB", k * k * k},
                                {"TiB", k * k * k * k}});
}

Result<std::uint64_t> parse_bits_per_s(const std::string& text) {
  constexpr std::uint64_t k = 1000;
  return parse_with_unit(text,
                         {{"", 1}, {"bit", 1}, {"kbit", k}, {"mbit", k * k}, {"gbit", k * k * k}});
}

std::string daemon_socket(const std::string& name, const NodeId& node) {
  return node_run_dir(name, node) + "/godwitd.sock";
}

Result<ClusterStatus> local_status(const std::string& name) {
  TRY(check_cluster_name(name));
  ClusterState state = TRY(load_state(name));
  ClusterStatus status;
  status.name = state.name;
  status.complete = state.complete;
  status.network = sys::to_string(state.network);
  status.bandwidth_bits_per_s = state.bandwidth_bits_per_s;
  status.shared_dir = state.shared_dir;
  // Without the switch, or with another user's rights, links count as down.
  Result<UniqueFd> netns = switch_netns(name);
  Result<sys::Netlink> ports =
      netns.ok() ? sys::Netlink::open_in(netns->get()) : Result<sys::Netlink>(netns.error());
  for (const NodeState& node : state.nodes)
    status.nodes.push_back(status_of(state, node, ports.ok() ? &*ports : nullptr));
  return status;
}

std::string to_json(const ClusterStatus& status) {
  nlohmann::json nodes = nlohmann::json::array();
  for (const NodeStatus& node : status.nodes) {
    nodes.push_back({{"node", node.node.value},
                     {"running", node.running},
                     {"daemon_running", node.daemon_running},
                     {"daemon_answers", node.daemon_answers},
                     {"link_up", node.link_up},
                     {"init_pid", node.init_pid},
                     {"daemon_pid", node.daemon_pid},
                     {"address", node.address},
                     {"socket", node.socket},
                     {"log_path", node.log_path},
                     {"cgroup", node.cgroup},
                     {"cores", node.cores},
                     {"speed", node.speed},
                     {"memory_bytes", node.memory_bytes},
                     {"clock_offset_s", node.clock_offset_s}});
  }
  nlohmann::json json = {{"name", status.name},
                         {"complete", status.complete},
                         {"network", status.network},
                         {"bandwidth_bits_per_s", status.bandwidth_bits_per_s},
                         {"shared_dir", status.shared_dir},
                         {"nodes", nodes}};
  return json.dump(2);
}

}  // namespace godwit::local
