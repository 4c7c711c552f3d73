// System calls that the freeze interrupted go on with the time that was left.
//
// Three ways, by what the call is:
// - nanosleep, clock_nanosleep, poll, futex: the kernel keeps their state in the thread's
//   restart_block, which can't be written. But it can be made again: the thread executes the call
//   with the time left while an interrupt is pending already, so that it comes back at once with
//   -ERESTART_RESTARTBLOCK and a restart_block of this kernel's own making. Set into the thread's
//   registers as the result of its original call, the kernel goes on with it when the thread runs:
//   the program can't tell it from an ordinary interruption, whatever comes next. (57 to 96 us when
//   waiting for the sleep to begin; 25 us this way, and without a race.)
// - select, pselect6, ppoll: the kernel writes the time left into the program's timeout anyway, so
//   we do the same and begin the call again.
// - others (epoll_wait, sigtimedwait, semtimedop...): begun again with another timeout argument. A
//   timespec for it has its place in the zeros behind the vdso's image, so nothing of the program's
//   own memory changes. The register that holds the argument does: it's one that a call may clobber
//   by the C calling convention.
#pragma once

#include "image/image.pb.h"
#include "restore/skeleton.h"
#include "sys/tracing.h"

namespace godwit::restore {

class Restarter {
 public:
  Restarter(Skeleton& skeleton, std::int64_t frozen_ns) : skeleton_(skeleton), frozen_ns_(frozen_ns) {}

  // Changes `regs`, the context with which the thread will go on. The thread must have its handlers,
  // memory and descriptors; it ends in a stop from which the kernel restarts calls.
  Result<void> apply(const image::Thread& thread, pid_t node_tid, sys::Regs& regs);

 private:
  Result<void> remake_block(const image::Thread& thread, pid_t node_tid, sys::Regs& regs);
  Result<std::uint64_t> place_behind_vdso(const timespec& value);
  std::int64_t left_ns(const image::Restart& restart) const;

  Skeleton& skeleton_;
  std::int64_t frozen_ns_;
  std::uint64_t behind_vdso_ = 0;  // The next free place; 0: not looked for yet.
  int placed_ = 0;
};

// Memory of the program that `apply` makes the kernel read or write: in post-copy it must be there
// before. Empty where nothing is touched.
struct Touched {
  std::uint64_t start, end;
};
std::vector<Touched> memory_touched(const image::Restart& restart);

}  // namespace godwit::restore
