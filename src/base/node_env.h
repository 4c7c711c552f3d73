// Where a node keeps its things, and what it is called. Read once from the configuration by
// godwitd, passed to workers; nothing else knows these paths.
#pragma once

#include <string>

#include "base/ids.h"

namespace godwit {

struct NodeEnv {
  NodeId node;  // "n1"
  std::string cluster = "default";
  std::string run_dir = "/run/godwit";              // Lost at reboot, like the trees it speaks of.
  std::string state_dir = "/var/lib/godwit";        // Kept.
  std::string cgroup_base = "godwit";               // Relative to each hierarchy's mount point.
  std::string bridge = "godwit0";                   // Capsules' veths are ports of it.
  std::string libexec_dir = "/usr/libexec/godwit";  // godwit-init, godwit-worker.

  std::string capsule_run_dir(const CapsuleId& id) const {
    return run_dir + "/capsules/" + id.value;
  }
  // By the shell's serial (capsule/shell.h), not by the capsule's id.
  std::string shell_state_dir(const std::string& serial) const {
    return state_dir + "/capsules/" + serial;
  }
};

}  // namespace godwit
