// (Not ptrace.h: <sys/ptrace.h> would then be this file.)
//
// ptrace(2), one function per request, errors as values. A thread that is gone (ESRCH) is
// Errc::tracee_gone: a program may be killed at any call.
//
// Everything here must be called on the thread that seized the tracee.
#pragma once

#include <linux/filter.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/user.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace godwit::sys {

using Regs = user_regs_struct;

// Kernel-internal results of an interrupted system call (include/linux/errno.h): seen in rax at a
// stop, turned by the kernel into a restart or EINTR on the way back to the program.
inline constexpr std::int64_t err_restartsys = -512;
inline constexpr std::int64_t err_restartnointr = -513;
inline constexpr std::int64_t err_restartnohand = -514;
inline constexpr std::int64_t err_restart_restartblock = -516;

inline bool in_syscall(const Regs& regs) { return static_cast<std::int64_t>(regs.orig_rax) >= 0; }

Result<void> ptrace_seize(pid_t tid, unsigned long options);
Result<void> ptrace_set_options(pid_t tid, unsigned long options);
Result<void> ptrace_interrupt(pid_t tid);
Result<void> ptrace_cont(pid_t tid, int signal);
Result<void> ptrace_syscall(pid_t tid, int signal);  // Runs to the next entry or exit of a call.
Result<void> ptrace_detach(pid_t tid, int signal);

Result<Regs> ptrace_get_regs(pid_t tid);
Result<void> ptrace_set_regs(pid_t tid, const Regs& regs);
Result<std::string> ptrace_get_xstate(pid_t tid);
Result<void> ptrace_set_xstate(pid_t tid, const std::string& xstate);
Result<std::uint64_t> ptrace_get_sigmask(pid_t tid);
Result<void> ptrace_set_sigmask(pid_t tid, std::uint64_t mask);
Result<siginfo_t> ptrace_get_siginfo(pid_t tid);
// The queue of the thread, or the one that the process shares; nothing is taken out.
Result<std::vector<siginfo_t>> ptrace_peek_siginfo(pid_t tid, bool shared);

struct RseqConfig {
  std::uint64_t address = 0;
  std::uint32_t size = 0;
  std::uint32_t signature = 0;
  std::uint32_t flags = 0;
};
Result<RseqConfig> ptrace_get_rseq(pid_t tid);

struct SeccompProgram {
  std::vector<sock_filter> instructions;
  std::uint64_t flags = 0;
};
// `index` 0 is the filter installed first; nullopt: no more.
Result<std::optional<SeccompProgram>> ptrace_get_seccomp(pid_t tid, unsigned index);

// Whether syscall user dispatch is on (PR_SET_SYSCALL_USER_DISPATCH).
Result<bool> ptrace_syscall_dispatch(pid_t tid);

// A stop, or the end, as waitpid tells it.
struct Stop {
  int status = 0;
  bool exited() const;  // The thread is gone; nothing more will come.
  int signal() const;   // The stopping signal; SIGTRAP | 0x80 at a system call.
  int event() const;    // PTRACE_EVENT_*, 0 at a signal.
  bool at_syscall() const;
  bool is_interrupt() const;  // PTRACE_EVENT_STOP: our interrupt, or a group stop.
  bool at_signal() const;     // A signal is about to be delivered; its number is signal().
};

// Waits for one thread, at most `limit_us`. Spins (yielding) for a short while first, since a stop
// takes microseconds, then sleeps between looks: waitpid itself has no time limit.
// For a thread that was told to stop, or to make calls of which none sleeps: a loaded machine does.
constexpr std::int64_t stop_limit_us = 20'000'000;
Result<Stop> wait_stop(pid_t tid, std::int64_t limit_us);

// For use after a failed call, when it isn't known what the thread does: the stop in which it is,
// whether that was waited for already or not. One that runs is interrupted and waited for.
// Errc::tracee_gone also for the first thread of a process that was killed while others of its
// threads haven't been waited for: until then the kernel doesn't tell of its end.
Result<Stop> current_stop(pid_t tid, std::int64_t limit_us);

// Whether the thread lives and the calling thread is its tracer. What Errc::tracee_gone says may be
// the failure of a call; this is a second opinion.
bool is_our_tracee(pid_t tid);

}  // namespace godwit::sys
