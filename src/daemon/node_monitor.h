// What this node has and how busy it is. A node of a local cluster is what its control group is,
// not the machine.
#pragma once

#include <mutex>
#include <string>

#include "daemon/config.h"
#include "wire/api.pb.h"

namespace godwit::daemon {

inline constexpr const char* version = "0.1.0";

// One per start of the node: made in RUN_DIR, which a reboot empties.
Result<std::string> boot_incarnation(const NodeEnv& env);

class NodeMonitor {
 public:
  NodeMonitor(const Config& config, std::string boot);
  void sample();  // About once a second.
  // A node of a local cluster: its memory is its control group's.
  bool emulated() const { return config_.env.cgroup_base.find('/') != std::string::npos; }
  // Without `capsules`. Memory is what is in use now: what a failed attempt has just given back
  // refuses nobody.
  api::NodeInfo info() const;
  const std::string& boot() const { return boot_; }

 private:
  Result<std::uint64_t> cpu_usage_us() const;
  Result<std::uint64_t> memory_used_bytes() const;

  const Config& config_;
  const std::string boot_;
  double cores_;
  std::uint64_t memory_limit_bytes_;
  std::string kernel_;

  mutable std::mutex mutex_;
  double load_ = 0;
  std::uint64_t cpu_us_ = 0;
  std::int64_t sampled_us_ = 0;
};

}  // namespace godwit::daemon
