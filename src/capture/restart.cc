#include "capture/restart.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>

#include "base/clock.h"

namespace godwit::capture {
namespace {

constexpr std::int64_t ns_per_ms = 1'000'000;
constexpr std::int64_t ns_per_s = 1'000'000'000;
constexpr std::int64_t longest_s = 1LL << 32;  // So that nothing below overflows.

Result<std::int64_t> read_timespec(const sys::RemoteProcess& memory, std::uint64_t at) {
  std::int64_t raw[2];
  TRY(memory.read({at}, std::as_writable_bytes(std::span(raw))));
  return std::clamp<std::int64_t>(raw[0], 0, longest_s) * ns_per_s + raw[1];
}

// Sleeping on these clocks isn't a matter of time that passes, but of processor time that is used.
bool is_cpu_clock(std::uint64_t clock) {
  const auto id = static_cast<std::int32_t>(clock);
  return id < 0 || id == CLOCK_PROCESS_CPUTIME_ID || id == CLOCK_THREAD_CPUTIME_ID;
}

// The number of the call before the thread's program counter, where it is loaded as a constant
// (`mov $nr,%eax`) just before: so in every libc's wrappers. -1: it can't be told.
std::int64_t call_by_code(const sys::RemoteProcess& memory, const sys::Regs& regs) {
  constexpr std::size_t look_back = 16, syscall_bytes = 2, mov_bytes = 5;
  unsigned char code[look_back + syscall_bytes];
  if (!memory.read({regs.rip - sizeof code}, std::as_writable_bytes(std::span(code))).ok())
    return -1;
  std::int64_t found = -1;
  for (std::size_t at = 0; at + mov_bytes <= look_back; ++at) {
    if (code[at] != 0xb8) continue;
    const std::int64_t nr = code[at + 1] | (code[at + 2] << 8);
    const bool restarts =
        nr == SYS_nanosleep || nr == SYS_clock_nanosleep || nr == SYS_poll || nr == SYS_futex;
    if (!restarts || code[at + 3] != 0 || code[at + 4] != 0) continue;
    if (found >= 0) return -1;
    found = nr;
  }
  return found;
}

bool begins_anew(std::int64_t nr) {
  switch (nr) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_rt_sigtimedwait:
    case SYS_semtimedop:
      return true;
    default:
      return false;
  }
}

// Of a timeout, in a thread that seems to have slept for `asleep_ns`. One that is as good as over
// may have been over, and this be the next of the kind (sleep_clock.cc): its whole time is left.
std::int64_t left_of(std::int64_t whole_ns, std::int64_t asleep_ns) {
  constexpr std::int64_t doubtful_ns = 200'000;
  const std::int64_t left_ns = whole_ns - std::max<std::int64_t>(0, asleep_ns);
  return left_ns < doubtful_ns ? whole_ns : left_ns;
}

}  // namespace

TimeoutArg relative_timeout(std::int64_t nr, const std::uint64_t (&args)[6]) {
  using R = image::Restart;
  switch (nr) {
    case SYS_nanosleep:
      return {R::TIMESPEC, 0, args[1] != 0 ? 1 : -1};
    case SYS_clock_nanosleep:
      if (args[1] & TIMER_ABSTIME) return {};
      return {R::TIMESPEC, 2, args[3] != 0 ? 3 : -1};
    case SYS_poll:
      return static_cast<std::int32_t>(args[2]) < 0 ? TimeoutArg{} : TimeoutArg{R::MILLISECONDS, 2};
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
      return static_cast<std::int32_t>(args[3]) < 0 ? TimeoutArg{} : TimeoutArg{R::MILLISECONDS, 3};
    case SYS_epoll_pwait2:
      return args[3] == 0 ? TimeoutArg{} : TimeoutArg{R::TIMESPEC, 3};
    case SYS_rt_sigtimedwait:
      return args[2] == 0 ? TimeoutArg{} : TimeoutArg{R::TIMESPEC, 2};
    case SYS_semtimedop:
      return args[3] == 0 ? TimeoutArg{} : TimeoutArg{R::TIMESPEC, 3};
    case SYS_futex:
      // All other operations have absolute timeouts.
      if ((args[1] & FUTEX_CMD_MASK) != FUTEX_WAIT || args[3] == 0) return {};
      return {R::TIMESPEC, 3};
    default:
      // select, pselect6 and ppoll: the kernel itself writes what is left into the program's
      // memory.
      return {};
  }
}

Result<void> keep_timeout(const FrozenProcess& process, FrozenThread& thread,
                          const sys::RemoteProcess& memory, std::int64_t frozen_at_ns) {
  sys::Regs regs = thread.regs;
  if (!sys::in_syscall(regs) || static_cast<std::int64_t>(regs.rax) != sys::err_restartnohand)
    return {};
  if (!begins_anew(static_cast<std::int64_t>(regs.orig_rax)) || !thread.asleep_since_ns) return {};
  image::Thread described;
  TRY(describe_restart(process, thread, memory, frozen_at_ns, described));
  if (!described.has_restart()) return {};
  const image::Restart& restart = described.restart();
  const std::int64_t left_ns =
      std::max<std::int64_t>(0, restart.remaining_ns() - (monotonic_ns() - frozen_at_ns));
  if (restart.timeout() == image::Restart::MILLISECONDS) {
    regs.r10 = static_cast<std::uint64_t>((left_ns + ns_per_ms - 1) / ns_per_ms);
  } else {
    // Below the red zone of its stack: nobody's memory while it is in the call, which reads it
    // when it begins.
    constexpr std::uint64_t below_stack = 256, alignment = 16;
    const std::uint64_t place = (regs.rsp - below_stack) & ~(alignment - 1);
    const std::int64_t time[2] = {left_ns / ns_per_s, left_ns % ns_per_s};
    if (!memory.write({place}, std::as_bytes(std::span(time))).ok()) return {};
    (restart.timeout_arg() == 2 ? regs.rdx : regs.r10) = place;
  }
  TRY(sys::ptrace_set_regs(thread.tid, regs));
  thread.regs = regs;
  return {};
}

Result<sys::Regs> describe_restart(const FrozenProcess& process, const FrozenThread& thread,
                                   const sys::RemoteProcess& memory, std::int64_t frozen_at_ns,
                                   image::Thread& out) {
  sys::Regs regs = thread.regs;
  const auto result = static_cast<std::int64_t>(regs.rax);
  if (!sys::in_syscall(regs) || result > sys::err_restartsys ||
      result < sys::err_restart_restartblock)
    return regs;
  std::int64_t nr = static_cast<std::int64_t>(regs.orig_rax);
  if (nr == SYS_restart_syscall) {
    nr = thread.restarted_nr >= 0 ? thread.restarted_nr : call_by_code(memory, regs);
    if (nr < 0)
      return make_error(Errc::refused,
                        "thread {} of process {} is in a restarted system call that can't be told",
                        thread.tid_inside, process.pid_inside);
    regs.orig_rax = static_cast<std::uint64_t>(nr);
  }
  if (result == sys::err_restart_restartblock)
    regs.rax = static_cast<std::uint64_t>(sys::err_restartnohand);

  const std::uint64_t args[6] = {regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9};
  const TimeoutArg timeout = relative_timeout(nr, args);
  if (timeout.kind == image::Restart::NONE) return regs;
  std::int64_t left_ns = 0;
  if (timeout.kind == image::Restart::MILLISECONDS) {
    left_ns = static_cast<std::int32_t>(args[timeout.index]) * ns_per_ms;
  } else if (timeout.left_index >= 0 && result == sys::err_restart_restartblock) {
    // The kernel wrote it when the sleep was interrupted, which was after the moment that the image
    // speaks of.
    left_ns = TRY(read_timespec(memory, args[timeout.left_index]));
    left_ns += thread.stopped_at_ns - frozen_at_ns;
  } else {
    left_ns = TRY(read_timespec(memory, args[timeout.index]));
  }
  const bool exact = timeout.left_index >= 0 && result == sys::err_restart_restartblock;
  const bool by_time = !(nr == SYS_clock_nanosleep && is_cpu_clock(args[0]));
  if (!exact && by_time && thread.ends_at_ns)
    left_ns = *thread.ends_at_ns - frozen_at_ns;
  else if (!exact && by_time && thread.asleep_since_ns)
    left_ns = left_of(left_ns, frozen_at_ns - *thread.asleep_since_ns);

  image::Restart& restart = *out.mutable_restart();
  restart.set_timeout(timeout.kind);
  restart.set_nr(nr);
  for (std::uint64_t arg : args) restart.add_args(arg);
  restart.set_timeout_arg(static_cast<std::uint32_t>(timeout.index));
  restart.set_remaining_ns(std::max<std::int64_t>(0, left_ns));
  return regs;
}

}  // namespace godwit::capture
