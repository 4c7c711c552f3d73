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
// Way. Before the freeze, while the program runs, each thread's call, exec_start, count and
// run-time (schedstat's first field) are read. Then, on each processor c, we are switched in and
// read our own exec_start, then CLOCK_MONOTONIC: offset[c]. A little too large (the time to read),
// and what is lost after a thread fell asleep makes it larger still: `exec_start + offset` is never
// before the true start, so what is left is never too little. (The other way round, 1 ms that was
// lost between the two let a sleep of 3 ms end after 2.)
//
// What is seen may be over when the freezer takes hold: the thread wakes up by itself, goes through
// the program and is on its way into an equal call when it is stopped. A second wake-up shows in
// the count. A single one that was not the freezer's began before the freezer was put on, and that
// shows too: where the thread stands in the freezer it has run since `exec_start + offset -
// (run-time now - run-time then)`. What can't be seen is a thread that wakes up by itself, passes
// through the program and is in an equal call again all within the microseconds that it takes to
// put the freezer on. If its timeout woke it up, that timeout is over by then: so one that is
// nearly over isn't believed (describe_restart). If something else did, and it does so r times a
// second, it has slept for 1/r: on the average the timeout is early by less than those
// microseconds.
//
// Where nothing is known the restorer uses the whole timeout.

#include "capture/sleep_clock.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/clock.h"
#include "base/io.h"
#include "sys/proc.h"

namespace godwit::capture {
namespace {

constexpr int calibrations = 3;

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

struct SchedStat {
  std::int64_t ran_ns = 0;
  std::uint64_t times = 0;  // That it got a processor.
  bool operator==(const SchedStat&) const = default;
};

std::optional<SchedStat> read_schedstat(pid_t pid, pid_t tid) {
  Result<std::string> text = read_file(sys::proc_path(pid, tid, "schedstat"));
  if (!text.ok()) return std::nullopt;
  unsigned long long run = 0, wait = 0, count = 0;
  if (std::sscanf(text->c_str(), "%llu %llu %llu", &run, &wait, &count) != 3) return std::nullopt;
  return SchedStat{static_cast<std::int64_t>(run), count};
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
    std::optional<std::int64_t>& offset = clock.offset_ns_[static_cast<std::size_t>(cpu)];
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (::sched_setaffinity(0, sizeof one, &one) != 0) continue;
    for (int tries = 0; tries < calibrations; ++tries) {
      ::sched_yield();  // So that exec_start is of now.
      Result<std::string> sched = read_file("/proc/thread-self/sched");
      if (!sched.ok()) continue;
      const std::optional<std::int64_t> start = exec_start_ns(*sched);
      if (!start) continue;
      // Each is too large, by the time between; the least one is the best.
      const std::int64_t now = monotonic_ns() - *start;
      offset = offset ? std::min(*offset, now) : now;
    }
  }
  ::sched_setaffinity(0, sizeof before, &before);
  return clock;
}

// Of a thread that doesn't run.
struct SleepClock::Look {
  SchedStat stat;
  std::int64_t exec_start_ns = 0;  // When it last ran.
  std::size_t processor = 0;
};

std::optional<SleepClock::Look> SleepClock::look(pid_t pid, pid_t tid) {
  const std::optional<SchedStat> before = read_schedstat(pid, tid);
  Result<std::string> sched = read_file(sys::proc_path(pid, tid, "sched"));
  Result<sys::ProcStat> stat = sys::read_stat(pid, tid);
  // Of one sleep all of it: a thread that woke up between two looks may be in an equal call again.
  if (!before || !sched.ok() || !stat.ok() || read_schedstat(pid, tid) != before)
    return std::nullopt;
  const std::optional<std::int64_t> start = exec_start_ns(*sched);
  if (!start) return std::nullopt;
  return Look{*before, *start, static_cast<std::size_t>(stat->processor)};
}

std::optional<std::int64_t> SleepClock::monotonic(std::int64_t exec_start_ns,
                                                  std::size_t processor) const {
  if (processor >= offset_ns_.size() || !offset_ns_[processor]) return std::nullopt;
  return exec_start_ns + *offset_ns_[processor];
}

void SleepClock::date(SleepSample& sample) const {
  sample.since_ns_ = monotonic(sample.exec_start_ns_, sample.processor_);
}

std::optional<SleepSample> SleepClock::sample(pid_t pid, pid_t tid) {
  Result<sys::ProcSyscall> call = sys::read_syscall(pid, tid);
  if (!call.ok() || call->running || !may_have_timeout(call->nr)) return std::nullopt;
  const std::optional<Look> seen = look(pid, tid);
  if (!seen) return std::nullopt;
  Result<sys::ProcSyscall> again = sys::read_syscall(pid, tid);
  if (!again.ok() || again->running || again->nr != call->nr) return std::nullopt;
  SleepSample sample;
  sample.pid_ = pid, sample.tid_ = tid, sample.nr_ = call->nr;
  std::memcpy(sample.args_, call->args, sizeof sample.args_);
  if (call->nr == SYS_restart_syscall) sample.restarted_nr_ = restarted_call(pid, tid, call->args);
  sample.exec_start_ns_ = seen->exec_start_ns, sample.processor_ = seen->processor;
  sample.times_scheduled_ = seen->stat.times;
  sample.ran_ns_ = seen->stat.ran_ns;
  return sample;
}

void SleepClock::confirm(SleepSample& sample, std::int64_t held_at_ns) const {
  const std::optional<Look> now = look(sample.pid_, sample.tid_);
  if (!now) return;
  if (now->stat.times == sample.times_scheduled_) sample.confirmed_ = true;  // Frozen asleep.
  if (now->stat.times != sample.times_scheduled_ + 1) return;
  // The offset is of before, so this is never after the truth.
  const std::optional<std::int64_t> last_ran_ns = monotonic(now->exec_start_ns, now->processor);
  if (!last_ran_ns) return;
  sample.confirmed_ = *last_ran_ns - (now->stat.ran_ns - sample.ran_ns_) >= held_at_ns;
}

bool SleepSample::same_call(const sys::Regs& regs) const {
  if (!sys::in_syscall(regs)) return false;
  const std::uint64_t args[6] = {regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9};
  return static_cast<std::int64_t>(regs.orig_rax) == nr_ &&
         std::memcmp(args, args_, sizeof args) == 0;
}

std::optional<std::int64_t> SleepSample::asleep_since_ns(const sys::Regs& regs) const {
  if (!confirmed_ || !same_call(regs)) return std::nullopt;
  return since_ns_;
}

// Also of an unconfirmed one: had it left the call, the next one would be interrupted for the first
// time now, and be its own number.
std::int64_t SleepSample::restarted_nr(const sys::Regs& regs) const {
  return same_call(regs) ? restarted_nr_ : -1;
}

}  // namespace godwit::capture
