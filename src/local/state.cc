#include "local/state.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/clock.h"
#include "base/io.h"

namespace godwit::local {
namespace {

using Json = nlohmann::json;
constexpr std::chrono::milliseconds lock_poll{10};

Json to_json_object(const ClusterState& state) {
  Json nodes = Json::array();
  for (const NodeState& node : state.nodes) {
    nodes.push_back({{"node", node.node.value},
                     {"number", node.number},
                     {"address", sys::to_string(node.address)},
                     {"cores", node.cores},
                     {"speed", node.speed},
                     {"memory_bytes", node.memory_bytes},
                     {"uptime_s", node.uptime_s}});
  }
  return {{"name", state.name},
          {"complete", state.complete},
          {"network", sys::to_string(state.network)},
          {"bandwidth_bits_per_s", state.bandwidth_bits_per_s},
          {"shared_dir", state.shared_dir},
          {"daemon_path", state.daemon_path},
          {"helper_path", state.helper_path},
          {"libexec_dir", state.libexec_dir},
          {"ready_timeout_us", state.ready_timeout_us},
          {"nodes", nodes}};
}

// Throws what nlohmann's throws; its caller turns that into an error.
Result<ClusterState> from_json_object(const Json& json) {
  ClusterState state;
  state.name = json.at("name");
  state.complete = json.at("complete");
  state.network = TRY(sys::parse_ipv4_prefix(json.at("network").get<std::string>()));
  state.bandwidth_bits_per_s = json.at("bandwidth_bits_per_s");
  state.shared_dir = json.at("shared_dir");
  state.daemon_path = json.at("daemon_path");
  state.helper_path = json.at("helper_path");
  state.libexec_dir = json.at("libexec_dir");
  state.ready_timeout_us = json.at("ready_timeout_us");
  for (const Json& item : json.at("nodes")) {
    NodeState node;
    node.node.value = item.at("node");
    node.number = item.at("number");
    node.address = TRY(sys::parse_ipv4(item.at("address").get<std::string>()));
    node.cores = item.at("cores");
    node.speed = item.at("speed");
    node.memory_bytes = item.at("memory_bytes");
    node.uptime_s = item.at("uptime_s");
    state.nodes.push_back(std::move(node));
  }
  return state;
}

}  // namespace

Result<const NodeState*> ClusterState::find(const NodeId& node) const {
  for (const NodeState& each : nodes)
    if (each.node == node) return &each;
  return make_error(Errc::not_found, "cluster {} has no node {}", name, node);
}

// 10.X.0.0/16: nodes are 10.X.0.K, capsules of node K start in 10.X.K.0/24.
sys::Ipv4Prefix ClusterState::capsule_range(const NodeState& node) const {
  return {sys::Ipv4{network.network().value | static_cast<std::uint32_t>(node.number) << 8}, 24};
}

Result<ClusterState> load_state_file(const std::string& path) {
  Result<std::string> text = read_file(path);
  if (!text.ok()) {
    if (text.error().sys_errno() != ENOENT) return std::move(text).error();
    return make_error(Errc::not_found, "there is no {}", path);
  }
  try {
    return from_json_object(Json::parse(*text)).with(path);
  } catch (const Json::exception& bad) {
    return make_error(Errc::invalid, "{}: {}", path, bad.what());
  }
}

Result<ClusterState> load_state(const std::string& name) {
  Result<ClusterState> state = load_state_file(state_file(name));
  if (!state.ok() && state.error().code() == Errc::not_found)
    return make_error(Errc::not_found, "there is no local cluster \"{}\"", name);
  return state;
}

Result<void> save_state(const ClusterState& state) {
  return replace_file(state_file(state.name), to_json_object(state).dump(2) + "\n", false);
}

std::string run_dir(const std::string& cluster) { return fmt::format("{}/{}", run_root, cluster); }
std::string state_file(const std::string& cluster) { return run_dir(cluster) + "/cluster.json"; }
std::string node_run_dir(const std::string& cluster, const NodeId& node) {
  return fmt::format("{}/{}", run_dir(cluster), node);
}
std::string disk_dir(const std::string& cluster) {
  return fmt::format("{}/{}", disk_root, cluster);
}
std::string node_disk_dir(const std::string& cluster, const NodeId& node) {
  return fmt::format("{}/{}", disk_dir(cluster), node);
}
std::string daemon_log(const std::string& cluster, const NodeId& node) {
  return node_disk_dir(cluster, node) + "/godwitd.log";
}
std::string cluster_cgroup(const std::string& cluster) { return "godwit-" + cluster; }
std::string switch_cgroup(const std::string& cluster) {
  return cluster_cgroup(cluster) + "/switch";
}
std::string node_cgroup(const std::string& cluster, const NodeId& node) {
  return fmt::format("{}/{}", cluster_cgroup(cluster), node);
}
std::string system_cgroup(const std::string& cluster, const NodeId& node) {
  return node_cgroup(cluster, node) + "/system";
}

Result<void> make_dirs(const std::string& path, unsigned mode) {
  for (std::size_t end = path.find('/', 1); end != std::string::npos;
       end = path.find('/', end + 1)) {
    std::string parent = path.substr(0, end);
    if (::mkdir(parent.c_str(), 0755) != 0 && errno != EEXIST)
      return os_error(fmt::format("mkdir({})", parent));
  }
  if (::mkdir(path.c_str(), mode) == 0) {
    // Whatever the caller's umask is.
    if (::chmod(path.c_str(), mode) != 0) return os_error(fmt::format("chmod({})", path));
  } else if (errno != EEXIST) {
    return os_error(fmt::format("mkdir({})", path));
  }
  return {};
}

Result<void> remove_all(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) return os_error(fmt::format("remove {}", path), error.value());
  return {};
}

Result<void> remove_contents(const std::string& path) {
  std::error_code error;
  std::vector<std::string> names;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end;
       it.increment(error))
    names.push_back(it->path());
  if (error && error.value() != ENOENT)
    return os_error(fmt::format("list {}", path), error.value());
  for (const std::string& name : names) TRY(remove_all(name));
  return {};
}

Result<ClusterLock> ClusterLock::take(const std::string& cluster, std::int64_t wait_us) {
  std::string path = fmt::format("{}/{}.lock", run_root, cluster);
  std::int64_t deadline_us = monotonic_us() + wait_us;
  while (true) {
    TRY(make_dirs(run_root));
    Result<UniqueFd> opened = open_fd(path, O_RDWR | O_CREAT, 0600);
    // Somebody's `down` took the empty directory away between the two calls.
    if (!opened.ok() && opened.error().sys_errno() == ENOENT) continue;
    UniqueFd fd = TRY(std::move(opened));
    while (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK && errno != EINTR) return os_error(fmt::format("flock({})", path));
      if (monotonic_us() > deadline_us)
        return make_error(Errc::timeout, "another command has been working on cluster {} for {} s",
                          cluster, wait_us / 1'000'000);
      std::this_thread::sleep_for(lock_poll);
    }
    // A `down` may have removed the file meanwhile: then this lock keeps nobody out.
    struct stat mine {};
    struct stat named {};
    if (::fstat(fd.get(), &mine) == 0 && ::stat(path.c_str(), &named) == 0 &&
        mine.st_ino == named.st_ino && mine.st_dev == named.st_dev)
      return ClusterLock(std::move(fd), std::move(path));
  }
}

void ClusterLock::remove_file() {
  ::unlink(path_.c_str());
  // The last one turns off the light; a directory with other clusters in it stays.
  if (::rmdir(run_root) == 0) ::rmdir("/run/godwit");
}

}  // namespace godwit::local
