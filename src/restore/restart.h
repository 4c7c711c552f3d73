// System calls that the freeze interrupted go on with the time that was left.
//
// Three ways, by what the call is:
// - nanosleep, clock_nanosleep, poll, futex: the kernel keeps their state in the thread's
//   restart_block, which can't be written. But it can be made again: the thread executes the call
//   with the time left while an interrupt is pending already, so that it comes back at once with
//   -ERESTART_RESTARTBLOCK and a restart_block of this kernel's own making. Set into the thread's
//   registers as the result of its original call, the kernel goes on with it when the thread runs:
//   the program can't tell it from an ordinary interruption, whatever comes next. All threads do it
//   side by side, since each takes two stops: 64 one after the other took 4.2 ms.
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
  Restarter(Skeleton& skeleton, std::int64_t frozen_ns)
      : skeleton_(skeleton), frozen_ns_(frozen_ns) {}

  struct Item {
    const image::Thread* thread;
    pid_t node_tid;
    sys::Regs* regs;  // In and out: the context with which the thread will go on.
    std::int64_t ends_at_ns =
        0;  // Out: CLOCK_MONOTONIC; when a remade sleep ends. 0: there is none.
  };
  // The threads must have their handlers, memory and descriptors; each ends in a stop from which
  // the kernel restarts calls. At most Arena::lanes_max - 1 at a time.
  Result<void> apply(std::span<Item> items);

 private:
  Result<void> change_argument(const Item& item);
  // The three steps to a restart_block, each for all threads before the next.
  Result<void> enter_call(const Item& item, unsigned lane);
  Result<void> interrupt_call(const Item& item);
  Result<void> take_result(Item& item);
  Result<std::uint64_t> place_behind_vdso(const timespec& value);
  std::int64_t left_ns(const image::Restart& restart) const;

  Skeleton& skeleton_;
  std::int64_t frozen_ns_;
  std::uint64_t behind_vdso_ = 0;  // The next free place; 0: not looked for yet.
  std::uint64_t behind_vdso_end_ = 0;
  int placed_ = 0;
};

// Memory of the program that `apply` makes the kernel read or write: in post-copy it must be there
// before. Empty where nothing is touched.
struct Touched {
  std::uint64_t start, end;
};
std::vector<Touched> memory_touched(const image::Restart& restart);

}  // namespace godwit::restore
