// `local up` and `local down`.
//
// Crash safety rests on three rules:
// 1. Everything that runs is in the cluster's cgroups, everything that is stored is below its two
//    directories, and both follow from its name. Mounts and network interfaces exist only in
//    namespaces of these processes and go with them. So `down` needs to know nothing but the name.
// 2. A lock that a starting process holds until it is in its cgroup (state.h, ClusterLock).
// 3. `down` takes away in an order in which it can die too: processes, mounts, files, the state
// directory last.
#include "local/local_cluster.h"

#include <limits.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <thread>

#include "base/clock.h"
#include "base/guard.h"
#include "base/io.h"
#include "local/node_root.h"
#include "local/nodes.h"
#include "local/pki.h"
#include "local/state.h"
#include "sys/cgroup.h"

namespace godwit::local {
namespace {

constexpr long overlayfs_magic = 0x794c7630;
constexpr std::uint32_t first_network = 0x0a400000;  // 10.64.0.0; 192 networks from there.
constexpr std::uint32_t networks = 192;
// Far apart, so that a program which mixed up two nodes' clocks would be off by hours.
constexpr std::int64_t first_uptime_s = 2 * 3600;
constexpr std::int64_t uptime_step_s = 7 * 3600 + 11 * 60;

void tell(const UpOptions& options, const std::string& line) {
  if (options.progress) options.progress(line);
}

Result<std::string> resolve(const std::string& path) {
  char resolved[PATH_MAX];
  if (::realpath(path.c_str(), resolved) == nullptr)
    return os_error(fmt::format("realpath({})", path));
  return std::string(resolved);
}

Result<std::string> find_program(const std::string& given, const std::string& name,
                                 const std::vector<std::string>& places) {
  if (!given.empty()) {
    std::string path = TRY(resolve(given));
    if (::access(path.c_str(), X_OK) != 0) return os_error(fmt::format("access({}, X_OK)", path));
    return path;
  }
  std::string beside = TRY(resolve("/proc/self/exe"));
  beside.resize(beside.rfind('/') + 1);
  for (const std::string& place : places) {
    Result<std::string> path = resolve(beside + place + name);
    if (path.ok() && ::access(path->c_str(), X_OK) == 0) return path;
  }
  return make_error(Errc::not_found, "there is no {} beside {} or where it is installed", name,
                    beside);
}

// A network for the cluster that no other cluster has and that the machine has no address in or
// route to (other than the default), so that a way out of the cluster could be added without any
// clash.
Result<sys::Ipv4Prefix> pick_network(const std::string& name) {
  std::vector<sys::Ipv4Prefix> taken;
  sys::Netlink netlink = TRY(sys::Netlink::open());
  for (const sys::Route& route : TRY(netlink.routes()))
    if (route.to && route.to->length > 0) taken.push_back(*route.to);
  for (const sys::Ipv4Prefix& address : TRY(netlink.addresses())) taken.push_back(address);
  for (const std::string& other : TRY(local_list())) {
    Result<ClusterState> state = load_state(other);
    if (other != name && state.ok()) taken.push_back(state->network);
  }
  std::uint32_t start = static_cast<std::uint32_t>(std::hash<std::string>{}(name) % networks);
  for (std::uint32_t i = 0; i < networks; ++i) {
    sys::Ipv4Prefix candidate{sys::Ipv4{first_network + ((start + i) % networks << 16)}, 16};
    bool free = std::none_of(taken.begin(), taken.end(),
                             [&](const sys::Ipv4Prefix& each) { return each.overlaps(candidate); });
    if (free) return candidate;
  }
  return make_error(Errc::refused, "no network from 10.64.0.0/16 to 10.255.0.0/16 is free");
}

Result<void> check_options(const UpOptions& options) {
  TRY(check_cluster_name(options.name));
  if (options.nodes < 1 || options.nodes > nodes_max)
    return make_error(Errc::invalid, "{} nodes: from 1 to {} are possible", options.nodes,
                      nodes_max);
  if (options.cores < 0 || options.cores > 4096)
    return make_error(Errc::invalid, "{} cores a node", options.cores);
  if (static_cast<int>(options.speeds.size()) > options.nodes)
    return make_error(Errc::invalid, "{} speeds for {} nodes", options.speeds.size(),
                      options.nodes);
  for (double speed : options.speeds) {
    if (!(speed >= 0.01 && speed <= 1.0))
      return make_error(Errc::invalid, "core speed {}: from 0.01 to 1.0 are possible", speed);
  }
  constexpr std::uint64_t memory_least = 64 << 20;
  if (options.memory_bytes != 0 && options.memory_bytes < memory_least)
    return make_error(Errc::invalid, "{} bytes of memory a node: at least 64M",
                      options.memory_bytes);
  constexpr std::uint64_t bandwidth_least = 1'000'000;
  if (options.bandwidth_bits_per_s != 0 && options.bandwidth_bits_per_s < bandwidth_least)
    return make_error(Errc::invalid, "bandwidth of {} bit/s: at least 1mbit",
                      options.bandwidth_bits_per_s);
  if (::geteuid() != 0) return make_error(Errc::permission, "a local cluster is made by root");
  return {};
}

Result<ClusterState> plan(const UpOptions& options) {
  ClusterState state;
  state.name = options.name;
  state.daemon_path = TRY(find_program(options.daemon_path, "godwitd", {"", "../sbin/"}));
  state.helper_path =
      TRY(find_program(options.helper_path, "godwit-node", {"", "../libexec/godwit/"}));
  state.libexec_dir = options.libexec_dir.empty()
                          ? state.helper_path.substr(0, state.helper_path.rfind('/'))
                          : TRY(resolve(options.libexec_dir));
  state.bandwidth_bits_per_s = options.bandwidth_bits_per_s;
  state.ready_timeout_us = options.ready_timeout_us;
  if (options.shared_dir.empty()) {
    state.shared_dir = disk_dir(options.name) + "/shared";
  } else {
    state.shared_dir = TRY(resolve(options.shared_dir));
    if (state.shared_dir == "/" || !std::filesystem::is_directory(state.shared_dir))
      return make_error(Errc::invalid, "{} can't be the shared directory", state.shared_dir);
  }
  state.network = TRY(pick_network(options.name));
  int cores = options.cores;
  if (cores == 0 && !options.speeds.empty())
    cores = static_cast<int>(std::thread::hardware_concurrency());
  for (int number = 1; number <= options.nodes; ++number) {
    NodeState node;
    node.number = number;
    node.node.value = fmt::format("n{}", number);
    node.address.value = state.network.network().value + static_cast<std::uint32_t>(number);
    node.cores = cores;
    if (!options.speeds.empty())
      node.speed =
          options.speeds[std::min(static_cast<std::size_t>(number), options.speeds.size()) - 1];
    node.memory_bytes = options.memory_bytes;
    node.uptime_s = first_uptime_s + (number - 1) * uptime_step_s;
    state.nodes.push_back(std::move(node));
  }
  return state;
}

// Upper directories can't lie on an overlay file system, as a container's root is one: there the
// disks are in memory.
Result<void> make_disks(const ClusterState& state) {
  std::string disks = disk_dir(state.name);
  TRY(make_dirs(disks));
  struct statfs status {};
  if (::statfs(disks.c_str(), &status) != 0) return os_error(fmt::format("statfs({})", disks));
  if (status.f_type == overlayfs_magic &&
      ::mount("godwit-disks", disks.c_str(), "tmpfs", 0, "") != 0)
    return os_error(fmt::format("mount(tmpfs, {})", disks));
  // Programs of all users work there.
  if (state.shared_dir == disks + "/shared") TRY(make_dirs(state.shared_dir, 01777));
  Authority authority = TRY(Authority::create(state.name));
  for (const NodeState& node : state.nodes) {
    Credentials own = TRY(authority.issue(node.node.value, sys::to_string(node.address)));
    TRY(make_node_disk(state, node, {authority.certificate(), own.certificate, own.key}));
  }
  return {};
}

// Preconditions: the lock is held.
Result<void> sweep(const std::string& name) {
  TRY(sys::CgroupGroup::remove(cluster_cgroup(name)));
  std::string disks = disk_dir(name);
  while (::umount2(disks.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0) {
  }
  if (errno != EINVAL && errno != ENOENT) return os_error(fmt::format("umount({})", disks));
  TRY(remove_all(disks));
  TRY(remove_all(run_dir(name)));
  // The common parents go with the last cluster; not empty is fine.
  ::rmdir(disk_root);
  return {};
}

Result<bool> anything_left(const std::string& name) {
  Result<sys::CgroupGroup> group = sys::CgroupGroup::open(cluster_cgroup(name));
  if (!group.ok() && group.error().code() != Errc::not_found) return std::move(group).error();
  return group.ok() || ::access(run_dir(name).c_str(), F_OK) == 0 ||
         ::access(disk_dir(name).c_str(), F_OK) == 0;
}

Result<void> refuse_if_up(const std::string& name) {
  Result<ClusterState> old = load_state(name);
  if (!old.ok() || !old->complete || switch_pid(name) == 0) return {};
  return make_error(Errc::refused,
                    "the local cluster \"{}\" is up already: `godwit local down` ends it", name);
}

Result<void> start_nodes(const ClusterState& state, const ClusterLock& lock,
                         const UpOptions& options) {
  TRY(finish_launch(TRY(launch_switch(state, lock))));
  std::vector<Launch> launches;
  for (const NodeState& node : state.nodes) launches.push_back(TRY(launch_node(state, node, lock)));
  for (std::size_t i = 0; i < launches.size(); ++i) {
    TRY(finish_launch(std::move(launches[i])).with("boot"));
    const NodeState& node = state.nodes[i];
    tell(options, fmt::format("{}: booted, address {}, up for {} h {} min by its clock", node.node,
                              sys::to_string(node.address), node.uptime_s / 3600,
                              node.uptime_s % 3600 / 60));
  }
  for (const NodeState& node : state.nodes) {
    TRY(await_daemon(state, node.node));
    tell(options, fmt::format("{}: godwitd answers", node.node));
  }
  return {};
}

}  // namespace

Result<ClusterStatus> local_up(const UpOptions& options) {
  TRY(check_options(options));
  ClusterLock lock = TRY(ClusterLock::take(options.name));
  TRY(refuse_if_up(options.name));
  if (TRY(anything_left(options.name))) {
    tell(options, "removing what an earlier cluster of this name left behind");
    TRY(sweep(options.name).with("remove leftovers"));
  }
  Guard undo([&] {
    Result<void> swept = sweep(options.name);
    if (!swept.ok())
      tell(options, "removing the failed cluster: " + swept.error().what());
    else
      lock.remove_file();
  });
  ClusterState state;
  {
    // Two that start at once must not pick the same network.
    ClusterLock choosing = TRY(ClusterLock::take(".network"));
    Guard remove([&] { choosing.remove_file(); });
    state = TRY(plan(options));
    TRY(make_dirs(run_dir(state.name)));
    TRY(save_state(state));
  }
  tell(options, fmt::format("cluster {}: {} nodes, network {}, shared directory {}", state.name,
                            state.nodes.size(), sys::to_string(state.network), state.shared_dir));
  TRY(make_disks(state).with("make disks"));
  TRY(start_nodes(state, lock, options));
  state.complete = true;
  TRY(save_state(state));
  undo.commit();
  return local_status(options.name);
}

Result<void> local_down(const std::string& name) {
  TRY(check_cluster_name(name));
  if (::geteuid() != 0) return make_error(Errc::permission, "a local cluster is removed by root");
  ClusterLock lock = TRY(ClusterLock::take(name));
  TRY(sweep(name).with(fmt::format("remove cluster {}", name)));
  lock.remove_file();
  return {};
}

Result<std::vector<std::string>> local_list() {
  std::set<std::string> names;
  for (const char* root : {run_root, disk_root}) {
    std::error_code error;
    for (std::filesystem::directory_iterator it(root, error), end; !error && it != end;
         it.increment(error)) {
      std::string name = it->path().filename();
      if (it->is_directory(error) && check_cluster_name(name).ok()) names.insert(name);
    }
    if (error && error.value() != ENOENT)
      return os_error(fmt::format("list {}", root), error.value());
  }
  return std::vector<std::string>(names.begin(), names.end());
}

}  // namespace godwit::local
