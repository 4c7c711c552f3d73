// Calls that a seccomp filter would kill for.
//
// Problem. The tracer suspends filters (PTRACE_O_SUSPEND_SECCOMP), but only as long as it lives: if
// it dies in the middle of a batch, the rest is up to the filter. Where that answers with an errno
// nothing is lost. Where it kills or traps, a dead tracer's batch would kill the program.
//
// Way. Filters are read (PTRACE_SECCOMP_GET_FILTER) and asked beforehand, call by call, with
// arguments and instruction pointer (seccomp_filter.h). A batch that some filter doesn't like is
// executed by other code:
//
// - Before each call it compares the time stamp counter with a deadline, which lies beside the code
//   and which the tracer, in a loop, puts a few microseconds into the future as long as it lives.
//   With a dead tracer no further call is made. (A register and a word of memory: no call, no
//   flag.)
// - At the end, and when the deadline has passed, the thread waits in a loop for its tracer, or for
//   the next one: recover() goes on with such a batch where it stopped, and then the thread's own
//   registers are set. Nobody comes within looks_max looks, one to three seconds: it loads them by
//   itself, and what was left of the batch stays undone.
// - The signal mask isn't changed, for putting it back is a call as well. A signal that arrives is
//   delivered over the thread's own context, then the batch goes on where it was.
// - There is no marker: every few microseconds the thread is interrupted and its registers tell.
//
// What remains. From the tracer's last write to the moment at which the kernel lets its tracees go
// it takes at least the way out of a system call and through most of do_exit(); the deadline is
// closer than that by design (fresh_cycles). So the program is killed only if its thread is held
// up, in the some fifty instructions from the comparison through `syscall` to the kernel's look at
// the filter, for as long as the tracer's exit takes, and the tracer is killed just then. Measured
// on 6.18: 200 tracers killed at random moments of such batches, no program died. But where the
// tracer was itself traced and killed at each of its system calls, so that the killer woke up on
// the thread's processor exactly when the tracer had moved the deadline, about 1 of 100 did
// (SIGSYS). To come nearer to nothing: make the comparison and the call a restartable sequence
// (rseq), so that a thread preempted between them compares again; and make the tracer's exit long.
// A program that forbade itself rdtsc (PR_TSC_SIGSEGV), or a processor without an invariant time
// stamp counter, or a [vdso] without room: these batches are executed as all others, unguarded.

#include <cpuid.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#include "base/clock.h"
#include "sys/remote.h"
#include "sys/seccomp_filter.h"

namespace godwit::sys {

using namespace remote_code;

namespace {

constexpr std::uint64_t fresh_cycles = 20'000;  // Some 5 to 10 us.
constexpr std::int64_t first_slice_us = 20;     // A call takes one or two; a wake-up more.
constexpr std::int64_t slice_max_us = 2'000;
constexpr int slices_max = 20'000;
constexpr int attempts_max = 5;
constexpr std::uint64_t pause_mark = 1;  // In args[0] of an entry that only stops the batch.

// Calls that take back what earlier ones of a batch did: refused, they would leave that behind.
bool takes_back(std::int64_t nr) {
  return nr == SYS_rt_sigprocmask || nr == SYS_close || nr == SYS_munmap;
}

bool is_harmless(std::uint32_t verdict, std::int64_t nr) {
  switch (verdict & SECCOMP_RET_ACTION_FULL) {
    case SECCOMP_RET_ALLOW:
    case SECCOMP_RET_LOG:
      return true;
    case SECCOMP_RET_ERRNO:
    case SECCOMP_RET_TRACE:  // Without a tracer: ENOSYS.
      return !takes_back(nr);
    default:
      return false;
  }
}

bool is_restart(std::uint64_t rax) {
  const auto value = static_cast<std::int64_t>(rax);
  return value <= err_restartsys && value >= err_restart_restartblock;
}

}  // namespace

bool has_invariant_tsc() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(0x80000007, &a, &b, &c, &d) != 0 && (d & (1U << 8)) != 0;
}

struct RemoteProcess::Guarded {
  std::uint64_t cursor = 0;  // The entry that comes next.
  bool single = false;       // It has no successor, and its result stays in rax.
  std::int64_t result = 0;
  std::function<void(std::uint64_t entry)> on_pause = [](std::uint64_t) {};
  bool away = false;  // The thread has injected registers.
  bool sure = true;   // No call has failed since it was last seen.
  std::int64_t slice_us = first_slice_us;
};

bool RemoteProcess::in_guarded_code(const Regs& regs) const {
  return regs.rip >= code_.value + injected_code().guarded &&
         regs.rip < code_.value + injected_code().end;
}

// Whether a filter of this thread would do harm to one of these calls, made with the instruction
// pointer `at`, if we weren't its tracer.
Result<bool> RemoteProcess::needs_guard(pid_t tid, std::span<const Entry> calls, std::size_t at) {
  if (!can_guard_) return false;
  auto known = filters_.find(tid);
  if (known == filters_.end()) {
    std::vector<SeccompProgram> programs;
    while (true) {
      Result<std::optional<SeccompProgram>> program =
          ptrace_get_seccomp(tid, static_cast<unsigned>(programs.size()));
      // Nobody may read filters who is under one himself.
      if (!program.ok() && program.error().sys_errno() == EACCES) break;
      std::optional<SeccompProgram> one = TRY(std::move(program));
      if (!one) break;
      programs.push_back(std::move(*one));
    }
    known = filters_.emplace(tid, std::move(programs)).first;
  }
  if (known->second.empty()) return false;
  for (const Entry& call : calls) {
    if (call.nr_plus_1 == 0) continue;
    seccomp_data data{};
    data.nr = static_cast<int>(call.nr_plus_1 - 1);
    data.arch = AUDIT_ARCH_X86_64;
    data.instruction_pointer = code_.value + at;
    std::copy(std::begin(call.args), std::end(call.args), data.args);
    if (!is_harmless(seccomp_verdict(known->second, data), data.nr)) return true;
  }
  return false;
}

// The tracee may make calls while we are in here, and for fresh_cycles afterwards.
Result<void> RemoteProcess::keep_alive(std::int64_t for_us) const {
  const std::int64_t start = monotonic_us();
  do {
    const std::uint64_t deadline = __rdtsc() + fresh_cycles;
    TRY(write({code_.value + offsetof(Header, deadline)}, std::as_bytes(std::span(&deadline, 1))));
  } while (monotonic_us() - start < for_us);
  return {};
}

Result<void> RemoteProcess::run_guarded(StoppedThread& thread, RemoteBatch& batch,
                                        std::size_t last) {
  for (std::size_t i = last; i < batch.entries_.size(); ++i) batch.entries_[i] = {};
  for (auto& pause : batch.pauses_)
    if (pause.look)
      batch.entries_[pause.entry] = {.nr_plus_1 = 0, .args = {pause_mark}, .result = 0};
  TRY(store_batch(batch));
  Run looks{batch};
  Guarded run;
  run.cursor = arena_.value + sizeof(ArenaHeader) + sizeof(Entry);  // The first sets the mask.
  run.on_pause = [&](std::uint64_t entry) { on_pause(looks, entry); };
  TRY(finish_guarded(thread, run));
  TRY(load_batch(batch));
  if (looks.look_error) return std::move(*looks.look_error);
  return {};
}

Result<std::int64_t> RemoteProcess::call_guarded(StoppedThread& thread, const Entry& call) {
  Guarded run;
  run.single = true;
  run.cursor = code_.value + injected_code().single;
  TRY(write({run.cursor}, std::as_bytes(std::span(&call, 1))));
  TRY(finish_guarded(thread, run));
  return run.result;
}

// To the end of the batch; afterwards the thread stands with its own registers, also after an
// error.
Result<void> RemoteProcess::finish_guarded(StoppedThread& thread, Guarded& run) {
  std::optional<Error> error;
  int failures = 0;
  for (int slice = 0; slice < slices_max && failures < attempts_max; ++slice) {
    Result<bool> done = guarded_slice(thread, run);
    run.sure = done.ok();
    if (done.ok() && *done) {
      if (error) return std::move(*error);
      return {};
    }
    if (done.ok()) {
      run.slice_us = std::min(run.slice_us * 2, slice_max_us);
      continue;
    }
    if (done.error().code() == Errc::tracee_gone && !is_our_tracee(thread.tid))
      return std::move(done).error();
    if (done.error().code() == Errc::unsupported) return std::move(done).error();
    if (!error) error = std::move(done).error();
    ++failures;
  }
  adrift_ = true;
  if (error) return std::move(*error);
  return make_error(Errc::timeout, "thread {}: a guarded batch does not end", thread.tid);
}

// Lets it make calls for a while. The answer: whether the batch is through.
Result<bool> RemoteProcess::guarded_slice(StoppedThread& thread, Guarded& run) {
  if (!run.sure) return after_slice(thread, run, TRY(current_stop(thread.tid, stop_limit_us)));
  const std::uint64_t words[] = {
      0, code_.value + (run.single ? injected_code().hold : injected_code().store)};
  TRY(write({code_.value + offsetof(Header, deadline)}, std::as_bytes(std::span(words))));
  TRY(save_context(thread.regs));
  Regs regs = thread.regs;
  regs.rip = code_.value + injected_code().guarded;
  regs.rbx = run.cursor;
  regs.orig_rax = ~0ULL;
  TRY(ptrace_set_regs(thread.tid, regs));
  run.away = true;
  TRY(ptrace_cont(thread.tid, 0));
  TRY(keep_alive(run.slice_us));
  TRY(ptrace_interrupt(thread.tid));
  return after_slice(thread, run, TRY(wait_stop(thread.tid, stop_limit_us)));
}

// How far has it come?
Result<void> RemoteProcess::advance_guarded(const Regs& regs, Guarded& run) const {
  const Code& code = injected_code();
  const std::uint64_t at = regs.rip - code_.value;
  const bool executed = at == code.guarded_syscall + 2 && !is_restart(regs.rax);
  run.cursor = regs.rbx;
  if (run.single) {
    if (!executed && at < code.hold) return {};
    run.result = static_cast<std::int64_t>(regs.rax);
    run.cursor = 0;
    return {};
  }
  if (executed || at == code.store) {
    const std::uint64_t result = regs.rax;
    TRY(write({run.cursor + offsetof(Entry, result)}, std::as_bytes(std::span(&result, 1))));
  }
  if (executed || at == code.store || at == code.stored) run.cursor += sizeof(Entry);
  return {};
}

Result<bool> RemoteProcess::after_slice(StoppedThread& thread, Guarded& run, const Stop& stop) {
  if (stop.exited()) return make_error(Errc::tracee_gone, "thread {} ended", thread.tid);
  const Regs regs = TRY(ptrace_get_regs(thread.tid));
  if (!in_injected_code(regs)) {
    if (stop.at_signal()) {
      TRY(deliver(thread, stop.signal()));
      return false;
    }
    const bool went_home = std::exchange(run.away, false) && run.sure;
    thread.regs = regs;
    if (went_home)
      return make_error(Errc::timeout, "thread {} waited for us for too long, and went on",
                        thread.tid);
    return run.cursor == 0;
  }
  TRY(advance_guarded(regs, run));
  if (stop.at_signal()) return on_signal_guarded(thread, run, stop.signal());
  while (run.cursor != 0) {
    Entry next;
    TRY(read({run.cursor}, std::as_writable_bytes(std::span(&next, 1))));
    if (next.nr_plus_1 != 0) return false;
    if (next.args[0] != pause_mark) break;
    run.on_pause(run.cursor);
    run.cursor += sizeof(Entry);
  }
  run.cursor = 0;
  TRY(ptrace_set_regs(thread.tid, thread.regs));
  run.away = false;
  return true;
}

Result<bool> RemoteProcess::on_signal_guarded(StoppedThread& thread, Guarded& run, int signal) {
  run.away = false;
  if (signal != SIGSEGV) {
    TRY(deliver(thread, signal));
    return false;
  }
  // It may not execute rdtsc. The fault isn't the program's.
  TRY(ptrace_set_regs(thread.tid, thread.regs));
  TRY(to_interrupt_stop(thread.tid));
  return make_error(Errc::unsupported, "thread {} can't read the time stamp counter", thread.tid);
}

// A thread that a dead tracer left in a guarded batch: the rest is executed with us as its tracer.
Result<void> RemoteProcess::come_home_guarded(StoppedThread& thread) {
  Header header;
  TRY(read(code_, std::as_writable_bytes(std::span(&header, 1))));
  const Regs regs = thread.regs;
  Regs own = regs;
  own.rax = header.rax, own.rbx = header.rbx, own.rcx = header.rcx, own.rdx = header.rdx;
  own.rsi = header.rsi, own.rdi = header.rdi, own.r8 = header.r8, own.r9 = header.r9;
  own.r10 = header.r10, own.r11 = header.r11, own.rip = header.rip;
  own.orig_rax = ~0ULL;
  thread.regs = own;
  Guarded run;
  run.single = header.after == code_.value + injected_code().hold;
  Result<void> home;
  if (run.single) {
    // An arena that was to be mapped or unmapped: which, its record tells as well.
    home = ptrace_set_regs(thread.tid, own);
  } else {
    run.away = true;
    home = advance_guarded(regs, run);
    if (home.ok()) home = finish_guarded(thread, run);
  }
  if (!home.ok()) thread.regs = regs;
  return home;
}

}  // namespace godwit::sys
