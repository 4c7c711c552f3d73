// What the restorer needs of a capsule's shell. `migrate` implements it over capsule::Shell and the
// capsule's init; tests have one of their own.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "base/result.h"
#include "base/unique_fd.h"
#include "image/image.pb.h"

namespace godwit::restore {

class SkeletonSource {
 public:
  struct Forked {
    pid_t node_pid = 0;      // As this node sees it.
    UniqueFd channel;        // Our end of a socketpair, for descriptors.
    int channel_there = -1;  // The number of the other end in the skeleton.
  };

  virtual ~SkeletonSource() = default;

  // A child of the capsule's init with this pid in the capsule, waiting in pause(), in the cgroup
  // `tree`.
  virtual Result<Forked> fork_skeleton(pid_t pid) = 0;

  // The capsule's init, as this node sees it.
  virtual pid_t init_pid() const = 0;

  // Makes the time namespace for children of init, in which the clocks show this much more than
  // those of this node; the result is for setns in skeletons that exist already. Called at most
  // once.
  virtual Result<UniqueFd> set_clocks(std::int64_t monotonic_delta_ns,
                                      std::int64_t boottime_delta_ns) = 0;

  // The program's end of the capsule's stdin (0), stdout (1), stderr (2): a pipe each, or the same
  // terminal. `original`: the description that the program would have been started with; else one
  // of its own.
  virtual Result<UniqueFd> stdio(std::uint32_t index, bool original) = 0;

  // The same of a capsule with a terminal; may be called before everything else about stdio.
  virtual Result<UniqueFd> terminal() = 0;

  // A socket that isn't of AF_UNIX, in the capsule's network, with its connection and what waits in
  // it. Nothing comes in or goes out yet.
  virtual Result<UniqueFd> socket(const image::Socket& socket) = 0;

  // Traffic flows again; just before the program does.
  virtual Result<void> start_traffic() = 0;

  // The root directory as the capsule sees it (/proc/INIT/root).
  virtual Result<UniqueFd> root() = 0;

  // /proc/sys/kernel/ns_last_pid of the capsule.
  virtual Result<void> set_last_pid(pid_t pid) = 0;

  // The freezer of the cgroup `tree`.
  virtual Result<void> freeze_tree() = 0;
  virtual Result<void> thaw_tree() = 0;
};

}  // namespace godwit::restore
