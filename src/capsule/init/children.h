// Processes that init makes inside the capsule's tree.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "capsule/init/fail.h"
#include "capsule/init/relay.h"
#include "capsule/init_protocol.h"

namespace godwit::init {

inline constexpr int cgroups_max = 16;

// How a child gets into the `tree` control groups. All close-on-exec, opened before init was inside
// the capsule.
struct TreeEntrance {
  int v2_directory = -1;   // For CLONE_INTO_CGROUP.
  int procs[cgroups_max];  // cgroup.procs of the v1 groups
  int procs_count = 0;
  int v2_procs = -1;          // Where CLONE_INTO_CGROUP isn't possible.
  int cgroup_namespace = -1;  // Its root is the tree's groups.
  int oom_score_adj = 0;      // What init itself was started with.
};

struct Child {
  pid_t pid = 0;  // In the capsule.
  int pidfd = -1;
};

struct SpawnOrder {
  capsule::SpawnHead head;
  const std::uint32_t* groups;
  const char* cwd;
  char** argv;
  char** env;
};

// The main program. Returns once it is executed, or why it couldn't be.
Fail spawn_main(const TreeEntrance& tree, const SpawnOrder& order, const Relay& relay, Child& out);

// A child that waits, with one end of a socketpair as its only descriptor.
Fail make_skeleton(const TreeEntrance& tree, pid_t pid, Child& out, int& channel,
                   int& channel_remote);

// A new time namespace for later children, and a descriptor of it. Offsets are beyond `base`, those
// of init's own namespace.
struct ClockBase {
  std::int64_t monotonic_ns = 0;
  std::int64_t boottime_ns = 0;
};
Fail read_clock_base(ClockBase& out);
Fail new_clocks(const ClockBase& base, const capsule::ClockDelta& delta, int& fd);

}  // namespace godwit::init
