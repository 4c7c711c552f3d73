// A capsule's shell as capture and restore want to see it. They don't know each other; they meet
// here.
#pragma once

#include <string>

#include "capsule/shell.h"
#include "capture/freeze.h"
#include "restore/skeleton_source.h"

namespace godwit::migrate {

// The shell's tree as capture wants to see it.
Result<capture::TreeRef> tree_of(capsule::Shell& shell);

// Where the worker that brings a capsule notes its sleeps, for the one that takes it away
// (sys/interrupted_sleep.h).
inline std::string sleeps_path(const NodeEnv& env, const CapsuleId& id) {
  return env.capsule_run_dir(id) + "/sleeps";
}

class ShellAdapter : public restore::SkeletonSource {
 public:
  explicit ShellAdapter(capsule::Shell& shell) : shell_(shell) {}  // Borrowed.

  Result<Forked> fork_skeleton(pid_t pid) override;
  Result<UniqueFd> set_clocks(std::int64_t monotonic_delta_ns,
                              std::int64_t boottime_delta_ns) override;
  Result<UniqueFd> stdio(std::uint32_t index, bool original) override;
  Result<UniqueFd> root() override;
  Result<void> set_last_pid(pid_t pid) override;
  Result<void> freeze_tree() override;
  Result<void> thaw_tree() override;

 private:
  capsule::Shell& shell_;
};

}  // namespace godwit::migrate
