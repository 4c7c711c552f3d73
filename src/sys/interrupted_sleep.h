// Sleeps that this node has interrupted once and that go on as restart_syscall(2).
//
// From then on neither the thread's registers nor the scheduler tell how much time was left: the
// kernel keeps it where nobody can read it. So whoever lets such a thread go on notes the end of
// its sleep, and the next freeze of the same tree looks it up. The note is believed only if the
// thread has slept exactly once since (its voluntary context switches): then it is still in that
// sleep. One switch more, for whatever reason, and nothing is said: the timeout begins anew, late
// but never early.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "sys/tracing.h"

namespace godwit::sys {

struct InterruptedSleep {
  pid_t tid_inside = 0;  // As the capsule sees it.
  std::int64_t nr = -1;  // The call that restart_syscall(2) stands for.
  std::uint64_t args[6] = {};
  // This node's CLOCK_MONOTONIC; not before the true end. Means nothing for processor time.
  std::int64_t ends_at_ns = 0;
  std::uint64_t voluntary_switches = 0;  // When it was let go on.

  // Whether a thread that was stopped with these registers continues this call, or an equal one.
  bool explains(const Regs& regs) const;
  // Whether a thread that has been switched so often, and was stopped with these registers, is
  // still in it.
  bool lasts(std::uint64_t voluntary_switches_now, const Regs& regs) const;
};

// One a line, in decimal. Lines that aren't right are left out: what is lost is the time of one
// sleep.
std::string to_text(std::span<const InterruptedSleep> sleeps);
std::vector<InterruptedSleep> interrupted_sleeps_from_text(std::string_view text);

Result<std::uint64_t> read_voluntary_switches(pid_t pid, pid_t tid);

}  // namespace godwit::sys
