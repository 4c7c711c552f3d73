// Problem. A thread sleeps in nanosleep, poll, futex or epoll_wait with a relative timeout. The
// kernel knows when it ends (a timer, and a restart_block that we can't read); on another kernel
// the call must be begun again with the time that is left. Never with less: a timeout that comes
// early is a bug in the program's eyes; a few microseconds more are ordinary.
//
// Facts. /proc/TID/sched has se.exec_start: the run queue's clock when the thread last ran, which
// is when it fell asleep. That clock (rq_clock_task) is CLOCK_MONOTONIC-like but leaves out time
// stolen by a hypervisor or spent in interrupts, and so lags more and more, on each processor
// differently. /proc/TID/schedstat (third field) counts how many times the thread got a processor.
//
// Way. Before the freeze, while the program runs: on each processor c we are switched in and read
// our own exec_start, then CLOCK_MONOTONIC: offset[c]. A little too large (the time to read), and
// what is lost after a thread fell asleep makes it larger still: `exec_start + offset` is never
// before the true start, so what is left is never too little. Then each thread's call, exec_start
// and count are read. After the freezer has taken hold the count must have grown by at most one
// (the freezer's own wake-up): otherwise the thread may have gone through that call and into an
// equal one, and nothing is said: the restorer then uses the whole timeout.

#include "capture/sleep_clock.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/clock.h"
#include "base/io.h"
#include "sys/proc.h"

namespace godwit::capture {
namespace {

// "se.exec_start   :   883133.491321": milliseconds, six decimals.
std::optional<std::int64_t> exec_start_ns(const std::string& sched) {
  std::size_t at = sched.find("se.exec_start");
  if (at == std::string::npos) return std::nullopt;
  at = sched.find(':', at);
  if (at == std::string::npos) return std::nullopt;
  char* end = nullptr;
  long long ms = std::strtoll(sched.c_str() + at + 1, &end, 10);
  if (*end != '.') return std::nullopt;
  long long fraction = std::strtoll(end + 1, nullptr, 10);
  return ms * 1'000'000 + fraction;
}

std::optional<std::uint64_t> times_scheduled(pid_t pid, pid_t tid) {
  Result<std::string> text = read_file(sys::proc_path(pid, tid, "schedstat"));
  if (!text.ok()) return std::nullopt;
  unsigned long long run = 0, wait = 0, count = 0;
  if (std::sscanf(text->c_str(), "%llu %llu %llu", &run, &wait, &count) != 3) return std::nullopt;
  return count;
}

bool may_have_timeout(std::int64_t nr) {
  switch (nr) {
    case SYS_nanosleep:
    case SYS_clock_nanosleep:
    case SYS_poll:
    case SYS_ppoll:
    case SYS_select:
    case SYS_pselect6:
    case SYS_futex:
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_rt_sigtimedwait:
    case SYS_semtimedop:
    case SYS_restart_syscall:
      return true;
    default:
      return false;
  }
}

// A sleep that was interrupted before (by an earlier freeze, by SIGSTOP) goes on as
// restart_syscall(2); which call it stands for is told by the function that the thread sleeps in.
std::int64_t restarted_call(pid_t pid, pid_t tid, const std::uint64_t (&args)[6]) {
  Result<std::string> stack = read_file(sys::proc_path(pid, tid, "stack"));
  if (!stack.ok()) return -1;
  auto has = [&](const char* function) { return stack->find(function) != std::string::npos; };
  if (has("futex")) return SYS_futex;
  if (has("poll")) return SYS_poll;
  if (!has("syscall")) return -1;  // Not readable, or something unknown.
  // The sleeping functions themselves are left out of a stack (they are the scheduler's), so
  // nothing but the entry is there. clock_nanosleep's first argument is a clock, nanosleep's a
  // pointer.
  constexpr std::uint64_t clocks_max = 16;
  const auto clock = static_cast<std::int32_t>(args[0]);
  return args[0] < clocks_max || (clock < 0 && args[0] >> 32 == 0) ? SYS_clock_nanosleep
                                                                   : SYS_nanosleep;
}

}  // namespace

SleepClock SleepClock::calibrate() {
  SleepClock clock;
  cpu_set_t before;
  if (::sched_getaffinity(0, sizeof before, &before) != 0) return clock;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &before)) continue;
    clock.offset_ns_.resize(static_cast<std::size_t>(cpu) + 1);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (::sched_setaffinity(0, sizeof one, &one) != 0) continue;
    ::sched_yield();  // So that exec_start is of now.
    Result<std::string> sched = read_file("/proc/thread-self/sched");
    if (!sched.ok()) continue;
    if (std::optional<std::int64_t> start = exec_start_ns(*sched))
      clock.offset_ns_[static_cast<std::size_t>(cpu)] = monotonic_ns() - *start;
  }
  ::sched_setaffinity(0, sizeof before, &before);
  return clock;
}

std::optional<SleepSample> SleepClock::sample(pid_t pid, pid_t tid) const {
  Result<sys::ProcSyscall> call = sys::read_syscall(pid, tid);
  if (!call.ok() || call->running || !may_have_timeout(call->nr)) return std::nullopt;
  const std::optional<std::uint64_t> times_before = times_scheduled(pid, tid);
  Result<std::string> sched = read_file(sys::proc_path(pid, tid, "sched"));
  Result<sys::ProcStat> stat = sys::read_stat(pid, tid);
  std::optional<std::uint64_t> times = times_scheduled(pid, tid);
  // Of one sleep all of it: a thread that woke up between two looks may be in an equal call again.
  if (!sched.ok() || !stat.ok() || !times || times != times_before) return std::nullopt;
  Result<sys::ProcSyscall> again = sys::read_syscall(pid, tid);
  if (!again.ok() || again->running || again->nr != call->nr) return std::nullopt;
  std::optional<std::int64_t> start = exec_start_ns(*sched);
  const auto cpu = static_cast<std::size_t>(stat->processor);
  if (!start || cpu >= offset_ns_.size() || !offset_ns_[cpu]) return std::nullopt;
  SleepSample sample;
  sample.pid_ = pid, sample.tid_ = tid, sample.nr_ = call->nr;
  std::memcpy(sample.args_, call->args, sizeof sample.args_);
  if (call->nr == SYS_restart_syscall) sample.restarted_nr_ = restarted_call(pid, tid, call->args);
  sample.since_ns_ = *start + *offset_ns_[cpu];
  sample.times_scheduled_ = *times;
  return sample;
}

void SleepSample::confirm() {
  std::optional<std::uint64_t> now = times_scheduled(pid_, tid_);
  confirmed_ = now && *now <= times_scheduled_ + 1;
}

bool SleepSample::speaks_of(const sys::Regs& regs) const {
  if (!confirmed_ || !sys::in_syscall(regs)) return false;
  const std::uint64_t args[6] = {regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9};
  return static_cast<std::int64_t>(regs.orig_rax) == nr_ &&
         std::memcmp(args, args_, sizeof args) == 0;
}

std::optional<std::int64_t> SleepSample::asleep_since_ns(const sys::Regs& regs) const {
  if (!speaks_of(regs)) return std::nullopt;
  return since_ns_;
}

std::int64_t SleepSample::restarted_nr(const sys::Regs& regs) const {
  return speaks_of(regs) ? restarted_nr_ : -1;
}

}  // namespace godwit::capture
