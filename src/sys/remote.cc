// Problem. Some kernel state only a process itself can ask for or change (signal handlers, an
// alternate stack, a userfaultfd of its memory). So the process is made to execute system calls.
// But the tracer that arranges this may be killed at any instruction; the kernel then detaches, and
// the tracee runs on with whatever registers it has. Four habits of debuggers are fatal then: a
// breakpoint (SIGTRAP kills), a single step (TF outlives the tracer: SIGTRAP kills), registers that
// only the tracer remembers, and a signal mask that only the tracer puts back.
//
// Way. The injected code needs nobody to come back from:
//
// - It lives in the unused tail of the last page of the tracee's [vdso]: the image ends at 0x1a11
// of
//   0x2000 bytes on 6.18, so about 1500 zero bytes are free, executable, and mapped in every
//   process. Writing through /proc/PID/mem gives the process a private copy of that page (the
//   kernel allows that for the sake of debuggers' breakpoints), other processes don't see it.
// - It uses no stack and no instruction that changes a flag (mov, lea, jrcxz, jmp, syscall), so
//   flags, FPU, segment bases and the memory below the stack pointer are the program's all the
//   time.
// - It executes an array of calls from an anonymous mapping (the arena), then loads the ten
//   registers that it used from a save area beside the code and leaves by `jmp *slot(%rip)`. The
//   save area is written before the registers are set; what it holds is the context as the kernel
//   would make it when it restarts an interrupted call (restart_applied): an injected context has
//   orig_rax = -1, so the kernel itself doesn't. The kernel's restart_block survives injected
//   calls, since none of them sleeps.
// - The first call of a batch blocks all signals, the last but one puts the mask back: the tracee
// does
//   it, not the tracer. A signal before the first call is delivered in the program's own context
//   (deliver() below), then injection starts again from the handler's first instruction. One
//   after the last call ends the batch just as well.
// - "The batch is through" is told by a signal that the tracee sends to itself with tgkill(2), of a
//   kind that it neither handles nor blocks and that is ignored by default (SIGURG, SIGWINCH or
//   SIGCHLD). A traced task stops even for an ignored signal, an orphaned one drops it. A thread
//   that blocks or handles all three is watched by PTRACE_SYSCALL stops instead, 2 per call.
//
// While the tracer lives it puts the exact registers back (with orig_rax and the kernel's restart
// codes), so that a signal which arrives before the thread is released still turns pause(2) or
// sigsuspend(2) into EINTR, as if we had never been there. Only a tracer that dies within the
// microseconds of a batch, in which a signal for a thread in pause(2) arrives as well, makes that
// thread pause again; every other call is restarted as the kernel itself would.
//
// Seccomp filters are suspended by the tracer (PTRACE_O_SUSPEND_SECCOMP), so a tracer that dies
// within a batch leaves the rest of it to the filter. Batches for which a filter would kill are
// executed in another way: remote_guard.cc.
//
// Measured on 6.18, 2 cores under load: open(), map_arena() and a batch of 100 calls together 120
// to 250 us.

#include "sys/remote.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include "base/io.h"
#include "sys/maps_query.h"
#include "sys/proc.h"
#include "sys/remote_code.h"
#include "sys/vdso.h"

namespace godwit::sys {

using namespace remote_code;

namespace {

constexpr int signals_max = 256;  // Signals delivered while one injection is tried.
constexpr int settle_rounds_max = 10'000;
// To bring a thread back after a failed call. What fails so often in a row fails for good.
constexpr int attempts_max = 5;

bool is_gone(const Error& error, pid_t tid) {
  return error.code() == Errc::tracee_gone && !is_our_tracee(tid);
}

bool caught_or_blocked(std::uint64_t set, int signal) { return (set >> (signal - 1)) & 1; }

}  // namespace

Regs restart_applied(const Regs& regs) {
  Regs out = regs;
  if (!in_syscall(regs)) return out;
  switch (static_cast<std::int64_t>(regs.rax)) {
    case err_restartsys:
    case err_restartnointr:
    case err_restartnohand:
      out.rax = regs.orig_rax;
      break;
    case err_restart_restartblock:
      out.rax = SYS_restart_syscall;
      break;
    default:
      out.orig_rax = ~0ULL;
      return out;
  }
  out.rip -= 2;  // Onto the syscall instruction, which has two bytes in each of its forms.
  out.orig_rax = ~0ULL;
  return out;
}

Result<RemoteProcess> RemoteProcess::open(pid_t pid, pid_t pid_inside) {
  RemoteProcess process;
  process.pid_ = pid;
  process.pid_inside_ = pid_inside;
  process.mem_ = TRY(open_fd(proc_path(pid, "mem"), O_RDWR));
  process.signals_caught_ = TRY(read_status(pid)).sig_caught;
  TRY(process.find_code());
  TRY(process.adopt_arena());
  return process;
}

Result<void> RemoteProcess::read(RemoteAddr from, std::span<std::byte> to) const {
  while (!to.empty()) {
    ssize_t n = ::pread(mem_.get(), to.data(), to.size(), static_cast<off_t>(from.value));
    if (n < 0)
      return os_error(fmt::format("pread(/proc/{}/mem, {:#x}, {})", pid_, from.value, to.size()));
    if (n == 0) return make_error(Errc::tracee_gone, "process {} has no memory any more", pid_);
    from.value += static_cast<std::uint64_t>(n);
    to = to.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Result<void> RemoteProcess::write(RemoteAddr to, std::span<const std::byte> from) const {
  while (!from.empty()) {
    ssize_t n = ::pwrite(mem_.get(), from.data(), from.size(), static_cast<off_t>(to.value));
    if (n < 0)
      return os_error(fmt::format("pwrite(/proc/{}/mem, {:#x}, {})", pid_, to.value, from.size()));
    if (n == 0) return make_error(Errc::tracee_gone, "process {} has no memory any more", pid_);
    to.value += static_cast<std::uint64_t>(n);
    from = from.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

// The free tail of [vdso], or the place in it that an earlier tracer has taken.
Result<void> RemoteProcess::find_code() {
  for (const MapEntry& map : TRY(read_maps(pid_))) {
    if (!map.is_special("[vdso]")) continue;
    std::vector<std::byte> page(page_bytes);
    RemoteAddr last{map.end - page_bytes};
    TRY(read(last, page));
    Header header;
    for (std::size_t at = 0; at + sizeof header <= page.size(); at += 16) {
      std::memcpy(&header, page.data() + at, sizeof header.magic);
      if (std::equal(header.magic, header.magic + 2, magic)) {
        code_ = {last.value + at};
        code_room_ = before_vdso_stubs(page) - at;
        return {};
      }
    }
    const std::size_t free_end = before_vdso_stubs(page);
    std::size_t used = free_end;
    while (used > 0 && page[used - 1] == std::byte{0}) --used;
    // Zeros may belong to the image's last section; 64 spare bytes keep clear of that.
    std::size_t start = (used + 64 + 15) & ~std::size_t{15};
    if (start + injected_code().least() > free_end)
      return make_error(Errc::unsupported,
                        "the [vdso] of process {} has {} free bytes, {} are needed", pid_,
                        free_end - used, injected_code().least());
    code_ = {last.value + start};
    code_room_ = free_end - start;
    return {};
  }
  return make_error(Errc::unsupported, "process {} has no [vdso]", pid_);
}

// Writes the code unless it is there, and takes over the arena of a tracer that died.
Result<void> RemoteProcess::adopt_arena() {
  Header header;
  can_guard_ = code_room_ >= injected_code().end && has_invariant_tsc();
  TRY(read(code_, std::as_writable_bytes(std::span(&header, 1))));
  if (!std::equal(header.magic, header.magic + 2, magic)) {
    // The magic goes last: whoever finds it finds the code too.
    std::span<const std::byte> code = injected_code().bytes;
    if (!can_guard_) code = code.first(injected_code().least() - sizeof header);
    TRY(write({code_.value + sizeof header}, code));
    header = {};
    std::copy(magic, magic + 2, header.magic);
    return write(code_, std::as_bytes(std::span(&header, 1)));
  }
  if (header.arena == 0) return {};
  for (const MapEntry& map : TRY(read_maps(pid_))) {
    if (map.start != header.arena || map.end != header.arena + header.arena_bytes) continue;
    if (!map.read || !map.write || map.shared || map.inode != 0) continue;
    ArenaHeader found;
    TRY(read({map.start}, std::as_writable_bytes(std::span(&found, 1))));
    if (!std::equal(found.magic, found.magic + 2, magic) || found.bytes != header.arena_bytes)
      continue;
    arena_ = {header.arena};
    arena_bytes_ = header.arena_bytes;
  }
  return {};
}

bool RemoteProcess::in_injected_code(const Regs& regs) const {
  return regs.rip >= code_.value && regs.rip < code_.value + code_room_;
}

Result<void> RemoteProcess::save_context(const Regs& regs) {
  const Regs r = restart_applied(regs);
  const std::uint64_t saved[] = {r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi,
                                 r.r8,  r.r9,  r.r10, r.r11, r.rip};
  return write({code_.value + offsetof(Header, rax)}, std::as_bytes(std::span(saved)));
}

// From any stop to one of PTRACE_EVENT_STOP: there the kernel is in its signal code, where it looks
// at orig_rax and rax once more before the thread returns to the program.
Result<Regs> RemoteProcess::to_interrupt_stop(pid_t tid) {
  TRY(ptrace_interrupt(tid));
  TRY(ptrace_cont(tid, 0));
  Stop stop = TRY(wait_stop(tid, stop_limit_us));
  if (stop.exited()) return make_error(Errc::tracee_gone, "thread {} ended", tid);
  if (!stop.is_interrupt())
    return make_error(Errc::internal, "thread {} stopped with status {:#x}, not by our interrupt",
                      tid, stop.status);
  return ptrace_get_regs(tid);
}

// Preconditions: the thread is in the delivery stop of `signal`, with injected registers. Delivers
// it to the program as if we weren't here: the handler's frame is built over the program's own
// context. Afterwards the thread stands on the handler's first instruction (or where it was, or it
// is dead).
Result<void> RemoteProcess::deliver(StoppedThread& thread, int signal) {
  TRY(ptrace_set_regs(thread.tid, thread.regs));
  TRY(ptrace_interrupt(thread.tid));
  TRY(ptrace_cont(thread.tid, signal));
  Stop stop = TRY(wait_stop(thread.tid, stop_limit_us));
  if (stop.exited())
    return make_error(Errc::tracee_gone, "process {} was ended by signal {}", pid_, signal);
  if (!stop.is_interrupt())
    return make_error(Errc::internal, "thread {} stopped with status {:#x} after signal {}",
                      thread.tid, stop.status, signal);
  thread.regs = TRY(ptrace_get_regs(thread.tid));
  return {};
}

Result<std::int64_t> RemoteProcess::try_call(StoppedThread& thread, long nr,
                                             std::array<std::uint64_t, 6> args) {
  bool entered = false;
  for (int signals = 0; signals < signals_max;) {
    if (!entered) {
      TRY(save_context(thread.regs));
      Regs regs = thread.regs;
      regs.rip = code_.value + injected_code().boot;
      regs.orig_rax = ~0ULL;
      regs.rax = static_cast<std::uint64_t>(nr);
      regs.rdi = args[0], regs.rsi = args[1], regs.rdx = args[2];
      regs.r10 = args[3], regs.r8 = args[4], regs.r9 = args[5];
      TRY(ptrace_set_regs(thread.tid, regs));
    }
    TRY(ptrace_syscall(thread.tid, 0));
    Stop stop = TRY(wait_stop(thread.tid, stop_limit_us));
    if (stop.exited()) return make_error(Errc::tracee_gone, "thread {} ended", thread.tid);
    if (stop.is_interrupt()) continue;  // A group stop; it stays in force for when we are gone.
    if (stop.at_signal()) {
      // Before the call was entered: after it, our interrupt comes before any signal.
      TRY(deliver(thread, stop.signal()));
      ++signals;
      continue;
    }
    if (!std::exchange(entered, true)) continue;  // At the entry; now to the exit.
    Regs regs = TRY(ptrace_get_regs(thread.tid));
    TRY(to_interrupt_stop(thread.tid));
    TRY(ptrace_set_regs(thread.tid, thread.regs));
    return static_cast<std::int64_t>(regs.rax);
  }
  return make_error(Errc::timeout, "thread {} gets signals faster than a call can be injected",
                    thread.tid);
}

// After a failed call of ours, while an injected one was under way: back to the thread's own
// registers, whether the injected one was executed or not.
Result<void> RemoteProcess::withdraw(StoppedThread& thread) {
  Stop stop = TRY(current_stop(thread.tid, stop_limit_us));
  if (stop.exited()) return make_error(Errc::tracee_gone, "thread {} ended", thread.tid);
  if (stop.at_signal()) return deliver(thread, stop.signal());
  Regs regs = TRY(ptrace_get_regs(thread.tid));
  if (stop.at_syscall()) {
    regs.orig_rax = ~0ULL;  // At an entry: not executed. At an exit: not restarted.
    TRY(ptrace_set_regs(thread.tid, regs));
    regs = TRY(to_interrupt_stop(thread.tid));
  }
  if (in_injected_code(regs)) return ptrace_set_regs(thread.tid, thread.regs);
  thread.regs = regs;  // As before, or in a handler: a signal had just been delivered.
  return {};
}

Result<std::int64_t> RemoteProcess::call(StoppedThread& thread, long nr,
                                         std::array<std::uint64_t, 6> args) {
  Entry entry{.nr_plus_1 = static_cast<std::uint64_t>(nr) + 1, .args = {}, .result = 0};
  std::copy(args.begin(), args.end(), entry.args);
  if (TRY(needs_guard(thread.tid, {&entry, 1}, injected_code().boot + 2))) {
    Result<std::int64_t> guarded = call_guarded(thread, entry);
    if (guarded.ok() || guarded.error().code() != Errc::unsupported) return guarded;
    can_guard_ = false;
  }
  Result<std::int64_t> result = try_call(thread, nr, args);
  if (result.ok() || is_gone(result.error(), thread.tid)) return result;
  for (int attempt = 0; attempt < attempts_max; ++attempt) {
    Result<void> back = withdraw(thread);
    if (back.ok() || is_gone(back.error(), thread.tid)) return result;
  }
  adrift_ = true;
  return result;
}

// Whether exactly this mapping exists; for when it isn't known whether a call was executed.
Result<bool> RemoteProcess::is_mapped(std::uint64_t start, std::uint64_t bytes) const {
  for (const MapEntry& map : TRY(read_maps(pid_)))
    if (map.start == start && map.end == start + bytes) return true;
  return false;
}

Result<void> RemoteProcess::map_arena(StoppedThread& thread, std::size_t bytes) {
  if (has_arena()) return {};
  INVARIANT(bytes % page_bytes == 0 && bytes > 0);
  const std::uint64_t at = TRY(roomy_address(pid_, bytes));
  // Recorded before it exists: if we die between, the next tracer knows where to look.
  const std::uint64_t record[] = {at, bytes};
  TRY(write({code_.value + offsetof(Header, arena)}, std::as_bytes(std::span(record))));
  Result<std::int64_t> got =
      call(thread, SYS_mmap,
           {at, bytes, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, ~0ULL, 0});
  if (got.ok() && *got < 0)
    return os_error(fmt::format("mmap({:#x}, {}) in process {}", at, bytes, pid_),
                    static_cast<int>(-*got));
  // From here it is there to be unmapped again, also if the call was executed and its answer lost.
  if (got.ok() || TRY(is_mapped(at, bytes))) {
    arena_ = {at};
    arena_bytes_ = bytes;
  }
  if (!got.ok()) return std::move(got).error();
  ArenaHeader header{{magic[0], magic[1]}, bytes, {}};
  return write({at}, std::as_bytes(std::span(&header, 1)));
}

Result<void> RemoteProcess::unmap_arena(StoppedThread& thread) {
  if (!has_arena()) return {};
  std::int64_t got = TRY(call(thread, SYS_munmap, {arena_.value, arena_bytes_, 0, 0, 0, 0}));
  if (got < 0)
    return os_error(fmt::format("munmap(arena) in process {}", pid_), static_cast<int>(-got));
  arena_ = {};
  const std::uint64_t record[] = {0, 0};
  return write({code_.value + offsetof(Header, arena)}, std::as_bytes(std::span(record)));
}

int RemoteProcess::choose_marker(std::uint64_t sigmask) const {
  for (int signal : {SIGURG, SIGWINCH, SIGCHLD})
    if (!caught_or_blocked(signals_caught_, signal) && !caught_or_blocked(sigmask, signal))
      return signal;
  return 0;
}

Result<void> RemoteProcess::run(StoppedThread& thread, RemoteBatch& batch) {
  const std::uint64_t sigmask = TRY(ptrace_get_sigmask(thread.tid));
  Run run{batch};
  run.sigmask = sigmask;
  run.marker = choose_marker(sigmask);

  const std::uint64_t marker_bit = run.marker ? 1ULL << (run.marker - 1) : 0;
  RemoteAddr mask_blocked = batch.put_value(~marker_bit);
  RemoteAddr mask_own = batch.put_value(sigmask);
  auto set_args = [](RemoteBatch::Entry& e, std::array<std::uint64_t, 6> args) {
    std::copy(args.begin(), args.end(), e.args);
  };
  set_args(batch.entries_[0], {SIG_SETMASK, mask_blocked.value, 0, 8, 0, 0});
  const std::size_t unblock =
      batch.append(SYS_rt_sigprocmask, {SIG_SETMASK, mask_own.value, 0, 8, 0, 0});
  batch.pauses_.push_back({batch.append(SYS_tgkill, {}), nullptr});
  for (auto& pause : batch.pauses_) {
    RemoteBatch::Entry& e = batch.entries_[pause.entry];
    if (run.marker == 0) e.nr_plus_1 = SYS_getpid + 1;  // Harmless; its entry stop is what counts.
    set_args(
        e, {static_cast<std::uint64_t>(pid_inside_), static_cast<std::uint64_t>(thread.tid_inside),
            static_cast<std::uint64_t>(run.marker), 0, 0, 0});
  }
  batch.entries_.emplace_back(RemoteBatch::Entry{});  // The end.

  const std::uint64_t base = arena_.value + sizeof(ArenaHeader);
  auto address = [&](std::size_t entry) { return base + entry * sizeof(RemoteBatch::Entry); };
  run.first = base, run.unblocked = address(unblock),
  run.last = address(batch.pauses_.back().entry);

  if (TRY(needs_guard(thread.tid, batch.entries_, injected_code().loop_syscall + 2))) {
    const std::vector<Entry> entries = batch.entries_;
    Result<void> done = run_guarded(thread, batch, unblock);
    if (done.ok() || done.error().code() != Errc::unsupported) return done;
    batch.entries_ = entries;  // Nothing was executed.
    can_guard_ = false;
  }
  TRY(store_batch(batch));
  TRY(enter(thread, run));
  TRY(load_batch(batch));
  if (run.look_error) return std::move(*run.look_error);
  return {};
}

Result<void> RemoteProcess::store_batch(RemoteBatch& batch) const {
  const RemoteBatch::Memory m = batch.memory();
  if (::process_vm_writev(pid_, m.local, 2, m.remote, 2, 0) == m.bytes) return {};
  return os_error(fmt::format("process_vm_writev({}, {} bytes)", pid_, m.bytes));
}

Result<void> RemoteProcess::load_batch(RemoteBatch& batch) const {
  const RemoteBatch::Memory m = batch.memory();
  if (::process_vm_readv(pid_, m.local, 2, m.remote, 2, 0) == m.bytes) return {};
  return os_error(fmt::format("process_vm_readv({}, {} bytes)", pid_, m.bytes));
}

// Watches until the batch is through; afterwards the thread has its own registers again. A call of
// ours that fails meanwhile changes nothing about that: the tracee can't be left in the middle with
// its signals blocked, so the rest is executed all the same.
Result<void> RemoteProcess::enter(StoppedThread& thread, Run& run) {
  // Each look of a batch, each signal and each stop of the watched kind takes a round.
  const std::size_t rounds_max = 4 * run.batch.entries_.size() + signals_max;
  int failures = 0;
  for (std::size_t round = 0; round < rounds_max && failures < attempts_max; ++round) {
    Result<Next> next = advance(thread, run);
    if (!next.ok()) {
      if (is_gone(next.error(), thread.tid)) return std::move(next).error();
      if (!run.error) run.error = std::move(next).error();
      run.sure = false;
      ++failures;
      continue;
    }
    run.sure = true;
    if (*next == Next::begin_again && !run.error) run.begun = false;
    if (*next == Next::finished || (*next == Next::begin_again && run.error)) {
      if (run.error) return std::move(*run.error);
      return {};
    }
  }
  adrift_ = true;
  if (run.error) return std::move(*run.error);
  return make_error(Errc::timeout, "thread {}: a batch of {} calls did not end", thread.tid,
                    run.batch.entries_.size());
}

Result<void> RemoteProcess::set_out(StoppedThread& thread, Run& run) {
  TRY(save_context(thread.regs));
  Regs regs = thread.regs;
  regs.rip = code_.value + injected_code().loop;
  regs.rbx = run.first;
  regs.orig_rax = ~0ULL;
  TRY(ptrace_set_regs(thread.tid, regs));
  run.begun = true;
  return {};
}

// To the next stop, and what has to be done there.
Result<RemoteProcess::Next> RemoteProcess::advance(StoppedThread& thread, Run& run) {
  Stop stop;
  if (run.sure) {
    if (!run.begun) TRY(set_out(thread, run));
    TRY(run.marker ? ptrace_cont(thread.tid, 0) : ptrace_syscall(thread.tid, 0));
    stop = TRY(wait_stop(thread.tid, stop_limit_us));
  } else {
    stop = TRY(current_stop(thread.tid, stop_limit_us));
  }
  if (stop.exited()) return make_error(Errc::tracee_gone, "thread {} ended", thread.tid);
  if (stop.at_syscall()) return on_syscall(thread, run);
  if (stop.at_signal()) return on_signal(thread, run, stop.signal());
  if (run.sure) return Next::go_on;  // A group stop; it stays in force for when we are gone.
  return after_failure(thread, run);
}

// Preconditions: the thread is in an interrupt stop. How far had it come?
Result<RemoteProcess::Next> RemoteProcess::after_failure(StoppedThread& thread, const Run& run) {
  const Regs regs = TRY(ptrace_get_regs(thread.tid));
  if (!in_injected_code(regs)) {
    thread.regs = regs;  // Not begun; or a signal has just been delivered.
    return Next::finished;
  }
  if (executed(regs, run.first) && !executed(regs, run.unblocked)) return Next::go_on;
  // The signal mask is the program's. A marker that is still to come is ignored.
  TRY(ptrace_set_regs(thread.tid, thread.regs));
  return Next::finished;
}

// Whether the call of this entry of a batch is done.
bool RemoteProcess::executed(const Regs& regs, std::uint64_t entry) const {
  return regs.rbx > entry ||
         (regs.rbx == entry && regs.rip > code_.value + injected_code().loop_syscall);
}

void RemoteProcess::on_pause(Run& run, std::uint64_t entry) {
  const std::uint64_t base = arena_.value + sizeof(ArenaHeader);
  for (auto& pause : run.batch.pauses_) {
    if (!pause.look || base + pause.entry * sizeof(RemoteBatch::Entry) != entry) continue;
    // Results so far are what a look is for.
    auto look = std::move(pause.look);
    pause.look = nullptr;
    iovec local{run.batch.entries_.data(), pause.entry * sizeof(RemoteBatch::Entry)};
    iovec remote{reinterpret_cast<void*>(base), local.iov_len};
    Result<void> seen = ::process_vm_readv(pid_, &local, 1, &remote, 1, 0) < 0
                            ? Result<void>(os_error(fmt::format("process_vm_readv({})", pid_)))
                            : look();
    if (!seen.ok() && !run.look_error) run.look_error = std::move(seen).error();
  }
}

Result<RemoteProcess::Next> RemoteProcess::on_signal(StoppedThread& thread, Run& run, int signal) {
  const Regs regs = TRY(ptrace_get_regs(thread.tid));
  if (!in_injected_code(regs)) {
    // Only if a call failed when this signal was about to be delivered.
    if (!run.error)
      return make_error(Errc::internal, "thread {}: signal {} at {:#x}, outside of the batch",
                        thread.tid, signal, regs.rip);
    TRY(deliver(thread, signal));
    return Next::finished;
  }
  if (!executed(regs, run.first)) {
    TRY(deliver(thread, signal));
    return Next::begin_again;
  }
  if (executed(regs, run.unblocked)) {
    // Everything asked for has been done; a signal of the program's may come before our marker.
    if (signal != run.marker) {
      TRY(deliver(thread, signal));
    } else {
      TRY(ptrace_set_regs(thread.tid, thread.regs));
    }
    return Next::finished;
  }
  if (signal == run.marker) {
    on_pause(run, regs.rbx);
    return Next::go_on;
  }
  if (signal == SIGSTOP) {
    // Can't be blocked. The whole process is stopped when we let go; this thread goes on for us.
    TRY(ptrace_cont(thread.tid, SIGSTOP));
    Stop stop = TRY(wait_stop(thread.tid, stop_limit_us));
    if (stop.exited()) return make_error(Errc::tracee_gone, "thread {} ended", thread.tid);
    return Next::go_on;
  }
  // A fault in injected code. It isn't the program's, and so neither is the signal.
  if (!run.error)
    run.error =
        Error(Errc::internal, fmt::format("thread {}: signal {} in an injected call at {:#x}",
                                          thread.tid, signal, regs.rip));
  TRY(ptrace_set_regs(thread.tid, thread.regs));
  TRY(ptrace_set_sigmask(thread.tid, run.sigmask));
  TRY(to_interrupt_stop(thread.tid));
  return Next::finished;
}

Result<RemoteProcess::Next> RemoteProcess::on_syscall(StoppedThread& thread, Run& run) {
  Regs regs = TRY(ptrace_get_regs(thread.tid));
  if (regs.rbx < run.last) {
    on_pause(run, regs.rbx);
    return Next::go_on;
  }
  // At the entry of the harmless call at the end: skip it.
  regs.orig_rax = ~0ULL;
  TRY(ptrace_set_regs(thread.tid, regs));
  TRY(to_interrupt_stop(thread.tid));
  TRY(ptrace_set_regs(thread.tid, thread.regs));
  return Next::finished;
}

Result<void> RemoteProcess::settle(StoppedThread& thread) {
  int failures = 0;
  for (int round = 0; round < settle_rounds_max; ++round) {
    Result<bool> out = settle_a_little(thread);
    if (out.ok() && *out) return {};
    if (out.ok()) continue;
    if (is_gone(out.error(), thread.tid)) return std::move(out).error();
    if (++failures == attempts_max) {
      adrift_ = true;
      return std::move(out).error();
    }
  }
  adrift_ = true;
  return make_error(Errc::timeout, "thread {} does not leave a batch that a dead tracer began",
                    thread.tid);
}

// The answer: whether it is out. Else it runs.
Result<bool> RemoteProcess::settle_a_little(StoppedThread& thread) {
  Stop stop = TRY(current_stop(thread.tid, stop_limit_us));
  if (stop.exited()) return make_error(Errc::tracee_gone, "thread {} ended", thread.tid);
  thread.regs = TRY(ptrace_get_regs(thread.tid));
  if (stop.is_interrupt() && !in_injected_code(thread.regs)) return true;
  if (stop.is_interrupt() && in_guarded_code(thread.regs)) {
    TRY(come_home_guarded(thread));
    return true;
  }
  // A signal of the program's own goes where it belongs.
  TRY(ptrace_cont(thread.tid, stop.at_signal() ? stop.signal() : 0));
  return false;
}

}  // namespace godwit::sys
