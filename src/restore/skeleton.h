// A process without a program, to be filled: forked with the right pid by the capsule's init or by
// the skeleton of its parent, seized by us, emptied. This file knows how to get hold of it and make
// it do things; what it should become is the business of address_space.h, process_state.h,
// thread_state.h.
//
// Kernel facts used here (measured on 6.18):
// - A skeleton is a fork of a static program, and glibc has registered an rseq area in it. Once
// that
//   memory is unmapped the kernel kills the task with SIGSEGV at its next preemption: rseq must be
//   unregistered before anything is unmapped.
// - int3 of a batch raises SIGTRAP by force_sig: if SIGTRAP were blocked or ignored, its handler
// would
//   be reset. So SIGTRAP stays unblocked while batches run, and an ignored SIGTRAP is set by
//   `single`, which stops at the exit of the call without any signal.
// - The kernel acts on -ERESTART* in rax only when a thread comes out of a signal stop or an event
//   stop, not out of a syscall stop: `park` leads there.
// - clone3(set_tid) of a traced thread costs 85 us (stops of both), so threads are made early.
// - A child that ends while its parent ignores SIGCHLD leaves neither zombie nor signal. Skeletons
//   do until their handlers are restored: those that are no longer wanted go without a trace.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "restore/remote_batch.h"
#include "restore/skeleton_source.h"
#include "sys/vdso.h"

namespace godwit::restore {

struct AddressRange {
  std::uint64_t start = 0, end = 0;
};

class Skeleton {
 public:
  struct Thread {
    pid_t tid;  // In the capsule.
    pid_t node_tid;
  };
  struct Vdso {
    std::uint64_t vvar = 0;  // Lowest address of the data areas before the code.
    std::uint64_t start = 0, end = 0;
    std::vector<AddressRange> parts;  // Of vvar, vvar_vclock, vdso; ascending.
    sys::VdsoImage image;
  };

  // Seizes and empties. `keep_free`: ranges (ascending) where the program will have mappings.
  static Result<Skeleton> adopt(SkeletonSource::Forked forked, pid_t pid,
                                std::span<const AddressRange> keep_free);
  // Another one, its child, in its session and process group. `exit_signal`: what the parent gets
  // at its end. Its areas are where the parent's are: see make_room.
  Result<Skeleton> fork(pid_t pid, int exit_signal);
  Skeleton(Skeleton&&) = default;
  Skeleton& operator=(Skeleton&&) = delete;
  ~Skeleton();  // Kills it, unless released.
  // Kills it now: when this returns it is nobody's child any more (init's children may still wait
  // for init to see it).
  Result<void> end();
  // It ends as wait(2) will tell its parent, who hasn't waited for it when this returns.
  Result<void> end_as(int wait_status, uid_t uid, const std::string& name);
  // See the top of this file. Switching it on throws away a SIGCHLD that waits to be taken.
  Result<void> ignore_children(bool on);

  pid_t pid() const { return pid_; }
  pid_t node_pid() const { return node_pid_; }
  int pidfd() const { return pidfd_.get(); }
  int mem_fd() const { return mem_.get(); }
  const std::vector<Thread>& threads() const { return threads_; }

  Batch batch(unsigned lane = 0) { return Batch(arena_, code_, lane); }
  Result<void> run(Batch& batch) { return batch.run(node_pid_); }

  // Gives the skeleton copies of our descriptors; returns their numbers there.
  Result<std::vector<int>> pass_fds(std::span<const int> fds);
  // A copy of one of the skeleton's descriptors for us.
  Result<UniqueFd> fetch_fd(int fd_there);
  // Closes all of the skeleton's descriptors but the channel, which moves to this number.
  Result<void> clear_fds(int channel_at);
  Result<void> close_channel();

  const Vdso& vdso() const { return vdso_; }
  // Moves it (and its data areas) so that the code starts at `start`.
  Result<void> place_vdso(std::uint64_t start);
  Result<void> unmap_vdso();
  Result<void> unmap_all();  // But the vdso and our own areas.
  // What of the address space is our own; it goes in the end.
  AddressRange own_area() const;

  // Sees to it that our own areas aren't where the program will have mappings.
  Result<void> make_room(std::span<const AddressRange> keep_free);

  // The leader must be alone for setns(CLONE_NEWTIME).
  bool single_threaded() const { return threads_.size() == 1; }
  // Creates and ends threads until exactly these exist (the leader first in `tids`); sorted as
  // `tids`.
  Result<void> set_threads(std::span<const pid_t> tids);

  // One call by the leader, without signals and without our areas; see the top of this file.
  Result<std::int64_t> single(long nr, const char* name, std::initializer_list<std::uint64_t> args);
  // Unmaps our areas: from here only `single` works. The leader ends in an event stop.
  Result<void> remove_traces();

  // All threads come to stand as if this signal had stopped them, by which they stay stopped when
  // they are released. Its parent isn't told, if it ignores SIGCHLD. After remove_traces.
  Result<void> stop_by(int signal);

  // Writes into the skeleton's memory whatever its protection (like /proc/PID/mem).
  Result<void> poke(std::uint64_t address, std::span<const std::byte> bytes);

  // From here our death leaves the threads in their stops (the frozen cgroup holds them).
  Result<void> disarm_exit_kill();
  // All threads go on with the registers they have. Best effort to the last thread; the first error
  // is returned.
  Result<void> release();

 private:
  Skeleton(pid_t pid, pid_t node_pid, Arena arena)
      : pid_(pid), node_pid_(node_pid), arena_(std::move(arena)) {}
  Result<void> open();
  Result<pid_t> clone(std::uint64_t flags, int exit_signal, pid_t tid);
  Result<void> use_own_arena(int arena_there);
  Result<void> locate_vdso();
  Result<void> install_arena(std::uint64_t place);
  Result<int> receive_first_fd();
  Result<void> empty();
  Result<void> move_vdso(std::uint64_t from, std::uint64_t to);
  Result<void> create_thread(pid_t tid);
  Result<void> end_thread(const Thread& thread);
  Result<void> park(pid_t node_tid);

  pid_t pid_;
  pid_t node_pid_;
  Arena arena_;
  std::uint64_t code_ = 0;
  UniqueFd pidfd_, mem_, channel_;
  int channel_there_ = -1;
  Vdso vdso_;
  std::uint64_t syscall_offset_ = 0;  // Of a `syscall` instruction in the vdso.
  std::vector<Thread> threads_;
  bool released_ = false;
};

// A gap of at least `bytes` outside `used` (ascending), far from its neighbours: the middle of the
// widest one.
Result<std::uint64_t> find_gap(std::span<const AddressRange> used, std::uint64_t bytes);

}  // namespace godwit::restore
