// A capsule's shell as capture and restore want to see it. They don't know each other; they meet
// here.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/node_env.h"
#include "capsule/shell.h"
#include "capture/freeze.h"
#include "restore/skeleton_source.h"
#include "sockets/restored_sockets.h"
#include "sys/interrupted_sleep.h"

namespace godwit::migrate {

// The shell's tree as capture wants to see it.
Result<capture::TreeRef> tree_of(capsule::Shell& shell);

// While a freeze waits for it, the capsule gets processors before others do; else the program's own
// threads, which do part of the work, wait for their turn at each step. Nothing depends on it but
// time; whoever ends a freeze, also another's, calls it off.
void hurry(const capsule::Shell& shell, bool on);

// Whoever lets a capsule's program go on notes the sleeps that it interrupted, for the worker that
// stops it next (sys/interrupted_sleep.h). What isn't noted begins anew, which is no reason to
// fail.
std::vector<sys::InterruptedSleep> noted_sleeps(const NodeEnv& env, const CapsuleId& id);
void note_sleeps(const NodeEnv& env, const CapsuleId& id,
                 std::span<const sys::InterruptedSleep> sleeps);

// FileIdentity's.
inline std::string hash_dir(const NodeEnv& env) { return env.run_dir + "/hashes"; }

class ShellAdapter : public restore::SkeletonSource {
 public:
  explicit ShellAdapter(capsule::Shell& shell)  // Borrowed.
      : shell_(shell), sockets_(shell.init_pid()) {}

  Result<Forked> fork_skeleton(pid_t pid) override;
  pid_t init_pid() const override { return shell_.init_pid(); }
  Result<UniqueFd> set_clocks(std::int64_t monotonic_delta_ns,
                              std::int64_t boottime_delta_ns) override;
  Result<UniqueFd> stdio(std::uint32_t index, bool original) override;
  Result<UniqueFd> terminal() override;
  Result<UniqueFd> socket(const image::Socket& socket) override;
  Result<void> start_traffic() override;
  Result<UniqueFd> root() override;
  Result<void> set_last_pid(pid_t pid) override;
  Result<void> freeze_tree() override;
  Result<void> thaw_tree() override;

  // The gate opens, and the network is told where the capsule is. Once; start_traffic does it too,
  // where there are sockets.
  Result<void> open_gate();

 private:
  capsule::Shell& shell_;
  sockets::RestoredSockets sockets_;
  bool any_socket_ = false, gate_open_ = false;
};

}  // namespace godwit::migrate
