// What happens to real machines: the power goes, the daemon dies, a link is cut.
#include <signal.h>

#include "local/local_cluster.h"
#include "local/node_network.h"
#include "local/nodes.h"
#include "sys/cgroup.h"

namespace godwit::local {
namespace {

constexpr std::int64_t settle_us_max = 60'000'000;

struct Locked {
  ClusterLock lock;
  ClusterState state;
};

Result<Locked> lock_cluster(const std::string& name) {
  TRY(check_cluster_name(name));
  // First without the lock, whose file would otherwise be made for a name that nobody uses.
  TRY(load_state(name));
  ClusterLock lock = TRY(ClusterLock::take(name));
  ClusterState state = TRY(load_state(name));
  return Locked{std::move(lock), std::move(state)};
}

}  // namespace

Result<void> node_stop(const std::string& name, const NodeId& node) {
  Locked locked = TRY(lock_cluster(name));
  TRY(locked.state.find(node));
  // PID 1's death is the death of its whole PID namespace, in one stroke by the kernel.
  pid_t init = init_pid(name, node);
  if (init != 0 && ::kill(init, SIGKILL) != 0 && errno != ESRCH)
    return os_error(fmt::format("kill(PID 1 of {})", node));
  return sys::CgroupGroup::remove(node_cgroup(name, node)).with(fmt::format("stop {}", node));
}

Result<void> node_start(const std::string& name, const NodeId& node) {
  Locked locked = TRY(lock_cluster(name));
  const NodeState* which = TRY(locked.state.find(node));
  if (init_pid(name, node) != 0)
    return make_error(Errc::refused, "node {} of cluster {} runs already", node, name);
  // What of the old boot outlived its PID 1 by a moment.
  TRY(sys::CgroupGroup::remove(node_cgroup(name, node)));
  TRY(finish_launch(TRY(launch_node(locked.state, *which, locked.lock))).with("boot"));
  return await_daemon(locked.state, node);
}

Result<void> daemon_kill(const std::string& name, const NodeId& node) {
  Locked locked = TRY(lock_cluster(name));
  TRY(locked.state.find(node));
  pid_t pid = daemon_pid(name, node);
  if (pid == 0) return make_error(Errc::not_found, "no godwitd runs on {}", node);
  if (::kill(pid, SIGKILL) != 0 && errno != ESRCH)
    return os_error(fmt::format("kill(godwitd of {})", node));
  // PID 1 takes the pid file away when it has reaped the daemon.
  return wait_for(fmt::format("end of godwitd of {}", node), settle_us_max,
                  [&]() -> Result<bool> { return daemon_pid(name, node) == 0; });
}

Result<void> daemon_start(const std::string& name, const NodeId& node) {
  Locked locked = TRY(lock_cluster(name));
  TRY(locked.state.find(node));
  pid_t init = init_pid(name, node);
  if (init == 0)
    return make_error(Errc::not_found, "node {} of cluster {} doesn't run", node, name);
  if (daemon_pid(name, node) != 0)
    return make_error(Errc::refused, "godwitd runs on {} already", node);
  if (::kill(init, SIGUSR1) != 0) return os_error(fmt::format("kill(PID 1 of {}, SIGUSR1)", node));
  TRY(wait_for(fmt::format("start of godwitd of {}", node), settle_us_max,
               [&]() -> Result<bool> { return daemon_pid(name, node) != 0; }));
  return await_daemon(locked.state, node);
}

Result<void> link_set(const std::string& name, const NodeId& node, bool connected) {
  Locked locked = TRY(lock_cluster(name));
  TRY(locked.state.find(node));
  UniqueFd netns = TRY(switch_netns(name));
  sys::Netlink netlink = TRY(sys::Netlink::open_in(netns.get()));
  return netlink.set_port_state(node.value,
                                connected ? sys::PortState::forwarding : sys::PortState::disabled);
}

Result<void> bandwidth_set(const std::string& name, std::uint64_t bits_per_s) {
  Locked locked = TRY(lock_cluster(name));
  locked.state.bandwidth_bits_per_s = bits_per_s;
  TRY(save_state(locked.state));  // For nodes that boot later.
  UniqueFd outer = TRY(switch_netns(name));
  for (const NodeState& node : locked.state.nodes) {
    if (init_pid(name, node.node) == 0) continue;
    UniqueFd inner = TRY(node_netns(name, node.node));
    TRY(limit_link(outer.get(), inner.get(), node.node, bits_per_s));
  }
  return {};
}

}  // namespace godwit::local
