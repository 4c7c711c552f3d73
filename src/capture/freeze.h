// Stops a process tree such that it can be looked at, and puts everything back unless told
// otherwise.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "capture/connections.h"
#include "image/image.pb.h"
#include "sys/interrupted_sleep.h"
#include "sys/proc.h"
#include "sys/remote.h"

namespace godwit::capture {

// What the capsule's init says about the program's standard streams (capsule/init_protocol.h).
struct TreeStdio {
  enum class Kind { none, pipes, pty } kind = Kind::none;
  std::uint64_t device = 0;     // st_dev of the pipes or of the pty's slave.
  std::uint64_t inode[3] = {};  // Pipes: of stdin, stdout, stderr. Pty: [0] is the slave's.
};

// The tree: everything in the cgroup `tree` of a capsule.
struct TreeRef {
  std::string freezer_path;  // Directory of the cgroup in the hierarchy that freezes.
  bool freezer_v2 = true;
  pid_t init_pid = 0;    // godwit-init of the capsule, as this node sees it.
  TreeStdio stdio = {};  // Pipes and terminals that are not these are refused.
  // Borrowed. Null: sockets other than those of AF_UNIX are refused.
  Connections* connections = nullptr;
};

struct FreezeHints {
  // Measure since when sleeping threads sleep, so that timeouts can be continued, here and on
  // another kernel (sleep_clock.h). Costs about 25 us a thread before anything is stopped.
  bool measure_sleeps = false;
  // Of threads that this node let go on before, from thaw() or from the restorer.
  std::vector<sys::InterruptedSleep> known_sleeps = {};
  // The target has another vdso: threads inside this one's functions go on until they are out.
  bool leave_vdso = false;
  // Called when all that can be found out before is found out, just before the program is stopped.
  std::function<void()> stopping = {};
};

struct FrozenThread : sys::StoppedThread {
  // CLOCK_MONOTONIC (of this process) since when it has been in its system call: never earlier than
  // the truth, so that a timeout computed from it never ends early.
  std::optional<std::int64_t> asleep_since_ns;
  int stop_signal = 0;  // Not 0: SIGSTOP or the like holds it; it stays so when it is thawed.
  UniqueFd status;  // /proc/PID/task/TID/status, opened while the program still ran; may be empty.
  std::int64_t stopped_at_ns =
      0;  // CLOCK_MONOTONIC when it was seen to stand: it has stood since before.
  // The call that restart_syscall(2) stands for, where the thread is in that; else -1.
  std::int64_t restarted_nr = -1;
  std::optional<std::int64_t>
      ends_at_ns;  // CLOCK_MONOTONIC; when that call ends, where it was noted.
};

struct FrozenProcess {
  pid_t pid = 0;         // As this node sees it.
  pid_t pid_inside = 0;  // As the capsule sees it.
  UniqueFd pidfd;
  std::vector<FrozenThread> threads;  // The leader first.
  std::optional<sys::RemoteProcess> remote;
};

// Owns the stop: the destructor lets the tree go on, on this node, as if nothing had been.
// Threads: everything must be called on the thread that called freeze(), since ptrace binds a
// tracee to it.
class FrozenTree {
 public:
  FrozenTree(FrozenTree&&) noexcept;
  FrozenTree& operator=(FrozenTree&&) = delete;
  ~FrozenTree();

  std::vector<FrozenProcess>& processes() { return processes_; }
  Result<FrozenProcess*> find(pid_t pid_inside);
  pid_t node_pid(pid_t pid_inside) const;                      // 0: no such process.
  std::int64_t frozen_at_ns() const { return frozen_at_ns_; }  // CLOCK_MONOTONIC

  // Opened at first use. Its arena, if one gets mapped, is unmapped by thaw(), seal() and the
  // destructor.
  Result<sys::RemoteProcess*> remote(FrozenProcess& process);

  // Exact: everything of image.proto but `spec`, and but what is found in files (migrate's work).
  // Injects. `earlier`: a description from before the freeze; flags of mappings that haven't
  // changed since are taken from it, which saves reading smaps (2.5 us a mapping and a walk over
  // every page).
  Result<void> describe(image::Capsule& capsule, const image::Capsule* earlier = nullptr);
  // After describe: where the content of private files without a name is opened ("/proc/PID/fd/3"),
  // by id.
  const std::map<std::uint32_t, std::string>& private_file_places() const {
    return private_file_places_;
  }

  // Freezes the cgroup again: from here the death of this process leaves the tree held, and nothing
  // can be injected.
  Result<void> seal();
  // The destructor will no longer thaw: somebody else runs the program now, or may be running it.
  void commit() { committed_ = true; }
  // Rollback. What fails is tried again; should it fail for good, this process ends itself: then
  // the kernel lets go of every thread, injected code gets through by itself, and recover(), which
  // somebody owes the tree after our death, does the rest.
  Result<void> thaw() { return thaw(nullptr); }
  // The same, and notes the sleeps that it interrupted, for the next freeze. For trees whose sleeps
  // were measured.
  Result<void> thaw(std::vector<sys::InterruptedSleep>* sleeps);

 private:
  friend Result<FrozenTree> freeze(const TreeRef&, const FreezeHints&);
  friend Result<void> recover(const TreeRef&);
  explicit FrozenTree(TreeRef tree) : tree_(std::move(tree)) {}

  struct Known;  // What was found out about a thread while it was still running.
  Result<std::vector<Known>> look_before(const FreezeHints& hints) const;
  Result<void> hold();
  bool all_frozen() const;
  Result<void> seize_all(std::vector<Known>& known);
  Result<bool> seize_new(std::vector<Known>& known);
  Result<bool> seize_one(pid_t tid, std::int64_t patience_us);
  void seize_rest();
  Result<void> collect(Known& known);
  Result<sys::Stop> first_stop(pid_t tid);
  Result<void> stop_all(const FreezeHints& hints);
  Result<void> let_go_of_all();
  Result<void> settle_orphans();
  Result<void> leave_vdso();
  Result<void> unhold();
  Result<void> unmap_arenas();
  bool take_back_arenas();
  std::vector<sys::InterruptedSleep> interrupted_sleeps();
  void keep_timeouts();
  FrozenProcess& process_of(pid_t pid, pid_t pid_inside);

  TreeRef tree_;
  std::map<std::uint32_t, std::string> private_file_places_;
  std::vector<UniqueFd> in_flight_;  // Descriptors in messages between the tree's sockets.
  std::vector<FrozenProcess> processes_;
  std::vector<pid_t> seized_;  // Every thread that we trace, also one whose stop isn't known yet.
  std::int64_t frozen_at_ns_ = 0;
  bool held_ = false;      // The cgroup is frozen by us.
  bool complete_ = false;  // Every thread is in `seized_`, and its stop was looked at.
  bool vforking_ = false;  // A thread was met that can't stop: see waits_in_vfork().
  bool committed_ = false;
};

// On failure the tree runs on, as it does when the answer goes out of scope.
Result<FrozenTree> freeze(const TreeRef& tree, const FreezeHints& hints = {});

// After the death of a tracer: puts interrupted system calls in order and thaws. Harmless on a tree
// that runs.
Result<void> recover(const TreeRef& tree);

// Every thread id in the tree, as this node sees it.
Result<std::vector<pid_t>> list_tree_threads(const TreeRef& tree);

// Replaces the EINTR that our stop (and the freezer's) caused in calls which the kernel doesn't
// restart after a stop. The answer: whether anything was changed.
bool repair_interrupted_call(sys::Regs& regs);

}  // namespace godwit::capture
