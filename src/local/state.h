// What is known of a local cluster between two commands: its file, its paths, its lock.
//
// Truth about what runs is never here: it is read from the cgroups, so that no recorded pid can be
// stale. The file holds what was asked for, which is what a node needs to boot again.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "sys/netlink.h"

namespace godwit::local {

inline constexpr const char* run_root = "/run/godwit/local";
// Not below /run, which is in memory on most machines; nor below /var/lib/godwit, which a node's
// own files hide.
inline constexpr const char* disk_root = "/var/lib/godwit-local";

struct NodeState {
  NodeId node;
  int number = 1;  // n1 is 1.
  sys::Ipv4 address;
  int cores = 0;  // 0: no cap
  double speed = 1.0;
  std::uint64_t memory_bytes = 0;
  std::int64_t uptime_s = 0;  // What its clocks show when it boots.
};

struct ClusterState {
  std::string name;
  bool complete = false;
  sys::Ipv4Prefix network;
  std::uint64_t bandwidth_bits_per_s = 0;
  std::string shared_dir;
  std::string daemon_path;
  std::string helper_path;
  std::string libexec_dir;
  std::int64_t ready_timeout_us = 0;
  std::vector<NodeState> nodes;

  Result<const NodeState*> find(const NodeId& node) const;
  sys::Ipv4Prefix capsule_range(const NodeState& node) const;
};

Result<ClusterState> load_state(const std::string& name);  // Errc::not_found
Result<ClusterState> load_state_file(const std::string& path);
Result<void> save_state(const ClusterState& state);

std::string run_dir(const std::string& cluster);
std::string state_file(const std::string& cluster);
std::string node_run_dir(const std::string& cluster, const NodeId& node);
std::string disk_dir(const std::string& cluster);
std::string node_disk_dir(const std::string& cluster, const NodeId& node);
std::string daemon_log(const std::string& cluster, const NodeId& node);

std::string cluster_cgroup(const std::string& cluster);                   // "godwit-NAME"
std::string switch_cgroup(const std::string& cluster);                    // "godwit-NAME/switch"
std::string node_cgroup(const std::string& cluster, const NodeId& node);  // "godwit-NAME/n1"
// A leaf for PID 1 and godwitd: with cgroup v2 only leaves hold processes.
std::string system_cgroup(const std::string& cluster, const NodeId& node);

// Files. All fail with the path in the error.
Result<void> make_dirs(const std::string& path, unsigned mode = 0755);  // Like mkdir -p.
Result<void> remove_all(const std::string& path);                       // Nothing there: fine.
Result<void> remove_contents(const std::string& path);

// One writer per cluster. The lock lies on the open file description, and the helper inherits it
// until it has entered its cgroup: whoever gets the lock after a crash thus finds every process
// that the dead one had started in the cluster's cgroups.
class ClusterLock {
 public:
  // Waits at most `wait_us` for others.
  static Result<ClusterLock> take(const std::string& cluster, std::int64_t wait_us = 90'000'000);
  int fd() const { return fd_.get(); }
  // The file goes too, with the cluster itself, and the directory of all clusters if it is empty.
  void remove_file();

 private:
  ClusterLock(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  UniqueFd fd_;
  std::string path_;
};

}  // namespace godwit::local
