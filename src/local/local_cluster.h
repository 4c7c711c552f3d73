// The local cluster: N nodes on one machine, each with namespaces, a disk, a clock and limits of
// its own, joined by a switch, each running the real godwitd. The API behind `godwit local`.
//
// All calls need root. They are serialized per cluster by a lock file, so any number of callers may
// use them at once; different clusters never touch each other.
//
// What a node's godwitd is started with: `godwitd --config /etc/godwit/godwit.toml` (see
// node_config.h for the keys), stdin /dev/null, stdout and stderr to NodeStatus::log_path.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace godwit::local {

inline constexpr int nodes_max = 64;

struct UpOptions {
  std::string name = "default";  // [a-z][a-z0-9-]*, at most 24 characters.
  int nodes = 3;                 // They are called n1, n2, ...
  int cores = 0;               // Emulated cores a node; 0: no cap (or the machine's, with speeds).
  std::vector<double> speeds;  // Of a core of n1, n2, ...; the last one goes for the rest; 1.0.
  std::uint64_t memory_bytes = 0;          // Limit of each node; 0: none.
  std::uint64_t bandwidth_bits_per_s = 0;  // Of each node's link, each direction; 0: no limit.
  std::string shared_dir;  // Seen by all nodes at the same path; empty: one is made.
  std::int64_t ready_timeout_us = 60'000'000;

  // Where the programs are; empty: beside this program or as installed.
  std::string daemon_path;  // godwitd
  std::string helper_path;  // godwit-node
  std::string libexec_dir;  // Holds godwit-init and godwit-worker.

  // Called with one line per step, for people.
  std::function<void(const std::string& line)> progress;
};

struct NodeStatus {
  NodeId node;
  bool running = false;         // Its PID 1 lives.
  bool daemon_running = false;  // godwitd's process lives ...
  bool daemon_answers = false;  // ... and its socket accepts connections.
  bool link_up = false;         // Not cut off at the switch.
  pid_t init_pid = 0;           // As the machine sees them; 0: none.
  pid_t daemon_pid = 0;
  std::string address;   // "10.201.0.1"
  std::string socket;    // Of godwitd, as the machine sees it.
  std::string log_path;  // Of godwitd, likewise.
  std::string cgroup;    // Relative to each hierarchy: "godwit-NAME/n1".
  int cores = 0;         // 0: no cap
  double speed = 1.0;
  std::uint64_t memory_bytes = 0;
  std::int64_t clock_offset_s = 0;  // CLOCK_MONOTONIC here minus the machine's.
};

struct ClusterStatus {
  std::string name;
  bool complete = false;  // False: `up` is still going on, or died.
  std::string network;    // "10.201.0.0/16"
  std::uint64_t bandwidth_bits_per_s = 0;
  std::string shared_dir;
  std::vector<NodeStatus> nodes;
};

// Returns when every godwitd answers. On failure everything is removed again. What a crashed `up`
// of the same name left behind is removed first; a cluster that is up is Errc::refused.
Result<ClusterStatus> local_up(const UpOptions& options);

Result<ClusterStatus> local_status(const std::string& name);  // Errc::not_found: no such cluster.
Result<std::vector<std::string>> local_list();  // Names of all clusters, also broken ones.

// Removes everything: processes, namespaces, cgroups, directories; whatever state it is in. Fine
// where there is nothing. A shared directory given by the user is left alone.
Result<void> local_down(const std::string& name);

// The power plug: everything on the node is killed at once, nothing is told. The disk stays.
Result<void> node_stop(const std::string& name, const NodeId& node);
// Boots again: the same disk, an empty /run and /tmp, another boot id. Waits until godwitd answers.
Result<void> node_start(const std::string& name, const NodeId& node);
// godwitd alone: SIGKILL, and a fresh one on the running node (waits until it answers). Capsules
// are not touched.
Result<void> daemon_kill(const std::string& name, const NodeId& node);
Result<void> daemon_start(const std::string& name, const NodeId& node);
// Cut: the switch drops silently all that goes to and comes from the node; its carrier stays.
Result<void> link_set(const std::string& name, const NodeId& node, bool connected);
Result<void> bandwidth_set(const std::string& name, std::uint64_t bits_per_s);  // 0: no limit

// Where the node's godwitd listens: /run/godwit/local/NAME/nK/godwitd.sock. No check that it
// exists.
std::string daemon_socket(const std::string& name, const NodeId& node);

Result<void> check_cluster_name(const std::string& name);
Result<std::uint64_t> parse_bytes(const std::string& text);  // "4G", "512M", "4GiB"; 1024-based
Result<std::uint64_t> parse_bits_per_s(const std::string& text);  // "1gbit", "100mbit", "0"

std::string to_json(const ClusterStatus& status);  // One object, indented.

}  // namespace godwit::local
