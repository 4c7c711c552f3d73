// Running nodes of a cluster: starting them, finding them, waiting for them. All callers hold the
// cluster's lock, save for those that only look.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "local/state.h"

namespace godwit::local {

// A godwit-node that was started and has not answered yet.
struct Launch {
  std::string what;
  pid_t pid = 0;
  UniqueFd answer;
};

Result<Launch> launch_switch(const ClusterState& cluster, const ClusterLock& lock);
// Empties the node's run directory, makes its cgroups with their limits.
Result<Launch> launch_node(const ClusterState& cluster, const NodeState& node,
                           const ClusterLock& lock);
Result<void> finish_launch(Launch launch);  // Bounded wait for the answer.

// Process ids as this process's PID namespace numbers them; 0: not running.
pid_t switch_pid(const std::string& cluster);
pid_t init_pid(const std::string& cluster, const NodeId& node);
pid_t daemon_pid(const std::string& cluster, const NodeId& node);

Result<UniqueFd> switch_netns(const std::string& cluster);
Result<UniqueFd> node_netns(const std::string& cluster, const NodeId& node);

bool daemon_answers(const std::string& cluster, const NodeId& node);
// Until its socket accepts a connection. Fails at once, with the end of its log, when the daemon
// has ended.
Result<void> await_daemon(const ClusterState& cluster, const NodeId& node);

// Calls `done` (which returns Result<bool>) every few milliseconds until it is true.
Result<void> wait_for(const std::string& what, std::int64_t timeout_us,
                      const std::function<Result<bool>()>& done);

}  // namespace godwit::local
