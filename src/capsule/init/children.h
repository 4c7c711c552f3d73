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

// How a child gets into the `tree` control groups and namespaces. All close-on-exec, opened before
// init was inside the capsule.
struct TreeEntrance {
  int v2_directory = -1;      // For CLONE_INTO_CGROUP.
  int v2_procs = -1;          // cgroup.procs, where CLONE_INTO_CGROUP isn't possible.
  int freezer_procs = -1;     // Of the v1 freezer, where that is what freezes.
  int cgroup_namespace = -1;  // Its root is the tree's groups.
  int time_namespace = -1;    // Set by new_clocks; entered by the child, which has one thread.
  int oom_score_adj = 0;      // What init itself was started with.
};

// Starts the thread that makes all children, in the v1 groups where the caller is now; see
// children.cc. Once, before anything else takes a number in the PID namespace.
Fail start_forker();

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
Fail new_clocks(const ClockBase& base, const capsule::ClockDelta& delta, TreeEntrance& tree);

}  // namespace godwit::init
