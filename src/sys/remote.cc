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
// Known gap: seccomp filters are suspended by the tracer (PTRACE_O_SUSPEND_SECCOMP), so a tracer
// that dies within a batch leaves the rest of it to the filter; one that kills for these calls then
// kills the program. To close it: evaluate the filter here first, and look at a word that the
// kernel changes when the tracer dies (a robust futex in a page shared with it, handled before
// tracees are detached) ahead of every call of a batch.
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
#include "sys/vdso.h"

namespace godwit::sys {
namespace {

constexpr std::int64_t stop_limit_us =
    20'000'000;                   // A batch has no call that sleeps; a loaded machine does.
constexpr int signals_max = 256;  // Signals delivered while one injection is tried.
constexpr int settle_rounds_max = 10'000;

constexpr std::uint64_t magic[2] = {0x6a6e492074697764ULL, 0x6f47206564746365ULL};

// What lies at the start of the free tail of [vdso]. The code is position-independent and follows.
struct Header {
  std::uint64_t magic[2];
  std::uint64_t arena, arena_bytes;  // Written before the arena is mapped.
  // Registers that injected code changes, in the order in which it loads them back.
  std::uint64_t rax, rbx, rcx, rdx, rsi, rdi, r8, r9, r10, r11, rip;
  std::uint64_t unused;
};
static_assert(sizeof(Header) == 16 * 8);
static_assert(offsetof(Header, rip) == 14 * 8);

// At the start of the arena, so that what a dead tracer left is recognised.
struct ArenaHeader {
  std::uint64_t magic[2];
  std::uint64_t bytes;
  std::uint64_t unused[5];
};
static_assert(sizeof(ArenaHeader) == 64);

// Offsets of the code from the header.
constexpr std::size_t boot_offset = sizeof(Header);   // syscall; jmp restore
constexpr std::size_t loop_offset = boot_offset + 4;  // rbx: the first RemoteBatch::Entry

// clang-format off
constexpr unsigned char code_before_restore[] = {
    0x0f, 0x05,                    // boot: syscall
    0xeb, 45,                      //       jmp restore
    0x48, 0x8b, 0x0b,              // loop: mov (%rbx),%rcx         number of the call + 1, or 0
    0xe3, 40,                      //       jrcxz restore
    0x48, 0x8d, 0x41, 0xff,        //       lea -1(%rcx),%rax
    0x48, 0x8b, 0x7b, 0x08,        //       mov 8(%rbx),%rdi
    0x48, 0x8b, 0x73, 0x10,        //       mov 16(%rbx),%rsi
    0x48, 0x8b, 0x53, 0x18,        //       mov 24(%rbx),%rdx
    0x4c, 0x8b, 0x53, 0x20,        //       mov 32(%rbx),%r10
    0x4c, 0x8b, 0x43, 0x28,        //       mov 40(%rbx),%r8
    0x4c, 0x8b, 0x4b, 0x30,        //       mov 48(%rbx),%r9
    0x0f, 0x05,                    //       syscall
    0x48, 0x89, 0x43, 0x38,        //       mov %rax,56(%rbx)
    0x48, 0x8d, 0x5b, 0x40,        //       lea 64(%rbx),%rbx
    0xeb, 0xd3,                    //       jmp loop
};
// clang-format on
constexpr std::size_t loop_syscall = loop_offset + 33;  // The syscall instruction of the loop.
constexpr std::size_t restore_offset = boot_offset + sizeof code_before_restore;
constexpr std::size_t restore_bytes = 10 * 7 + 6;
constexpr std::size_t code_bytes = restore_offset + restore_bytes;
// The jumps above are relative to the end of their instruction.
static_assert(boot_offset + 4 + 45 == restore_offset);
static_assert(loop_offset + 5 + 40 == restore_offset);
static_assert(restore_offset + 0xd3 - 0x100 == loop_offset);
static_assert(code_before_restore[loop_syscall - boot_offset] == 0x0f);

// Ten times `mov field(%rip),%reg`, then `jmp *rip_field(%rip)`.
std::vector<std::byte> assemble() {
  std::vector<std::byte> out;
  auto emit = [&](std::initializer_list<unsigned> bytes) {
    for (unsigned b : bytes) out.push_back(static_cast<std::byte>(b));
  };
  auto displacement = [&](std::size_t field) {
    // Relative to the end of the instruction, whose last four bytes these are.
    auto d =
        static_cast<std::int32_t>(field) - static_cast<std::int32_t>(boot_offset + out.size() + 4);
    for (int i = 0; i < 4; ++i) out.push_back(static_cast<std::byte>((d >> (8 * i)) & 0xff));
  };
  for (unsigned char b : code_before_restore) out.push_back(static_cast<std::byte>(b));
  const struct {
    unsigned rex, modrm;
    std::size_t field;
  } loads[] = {
      {0x48, 0x05, offsetof(Header, rax)}, {0x48, 0x1d, offsetof(Header, rbx)},
      {0x48, 0x0d, offsetof(Header, rcx)}, {0x48, 0x15, offsetof(Header, rdx)},
      {0x48, 0x35, offsetof(Header, rsi)}, {0x48, 0x3d, offsetof(Header, rdi)},
      {0x4c, 0x05, offsetof(Header, r8)},  {0x4c, 0x0d, offsetof(Header, r9)},
      {0x4c, 0x15, offsetof(Header, r10)}, {0x4c, 0x1d, offsetof(Header, r11)},
  };
  for (auto& load : loads) {
    emit({load.rex, 0x8b, load.modrm});
    displacement(load.field);
  }
  emit({0xff, 0x25});
  displacement(offsetof(Header, rip));
  INVARIANT(out.size() + boot_offset == code_bytes, "{} bytes of code", out.size());
  return out;
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

// ---- RemoteBatch

RemoteBatch::RemoteBatch(const RemoteProcess& process)
    : arena_(process.arena()), arena_bytes_(process.arena_bytes()) {
  INVARIANT(process.has_arena());
  // The two entries around the calls: block signals now, unblock later; run() fills them in.
  append(SYS_rt_sigprocmask, {});
}

bool RemoteBatch::has_room(std::size_t calls, std::size_t data_bytes) const {
  constexpr std::size_t own = 4 * sizeof(Entry) + 64;  // unblock, marker, end; masks.
  return sizeof(ArenaHeader) + (entries_.size() + calls) * sizeof(Entry) + own + data_bytes_ +
             data_bytes + 16 <=
         arena_bytes_;
}

std::size_t RemoteBatch::append(long nr, std::array<std::uint64_t, 6> args) {
  INVARIANT(has_room(1, 0), "a batch of {} calls is too large", entries_.size());
  Entry& entry = entries_.emplace_back();
  entry.nr_plus_1 = static_cast<std::uint64_t>(nr) + 1;
  std::copy(args.begin(), args.end(), entry.args);
  entry.result = 0;
  return entries_.size() - 1;
}

RemoteAddr RemoteBatch::space(std::size_t bytes) {
  INVARIANT(has_room(0, bytes), "a batch with {} bytes of data is too large", data_bytes_ + bytes);
  data_bytes_ += (bytes + 15) & ~std::size_t{15};
  if (data_.size() < data_bytes_) {
    std::vector<std::byte> larger(std::max(data_bytes_, data_.size() * 2));
    std::copy(data_.begin(), data_.end(), larger.end() - static_cast<std::ptrdiff_t>(data_.size()));
    data_ = std::move(larger);
  }
  return {arena_.value + arena_bytes_ - data_bytes_};
}

RemoteAddr RemoteBatch::put(std::span<const std::byte> data) {
  RemoteAddr at = space(data.size());
  std::copy(data.begin(), data.end(), data_.end() - static_cast<std::ptrdiff_t>(data_bytes_));
  return at;
}

void RemoteBatch::pause(std::function<Result<void>()> look) {
  // A tgkill whose signal run() chooses.
  pauses_.push_back({append(SYS_tgkill, {}), std::move(look)});
}

std::int64_t RemoteBatch::result(std::size_t index) const {
  INVARIANT(index < entries_.size());
  return entries_[index].result;
}

const std::byte* RemoteBatch::view(RemoteAddr from, std::size_t bytes) const {
  std::uint64_t low = arena_.value + arena_bytes_ - data_bytes_;
  INVARIANT(from.value >= low && from.value + bytes <= arena_.value + arena_bytes_);
  return data_.data() + (data_.size() - data_bytes_) + (from.value - low);
}

// ---- RemoteProcess

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
    if (start + code_bytes > free_end)
      return make_error(Errc::unsupported,
                        "the [vdso] of process {} has {} free bytes, {} are needed", pid_,
                        free_end - used, code_bytes);
    code_ = {last.value + start};
    code_room_ = free_end - start;
    return {};
  }
  return make_error(Errc::unsupported, "process {} has no [vdso]", pid_);
}

// Writes the code unless it is there, and takes over the arena of a tracer that died.
Result<void> RemoteProcess::adopt_arena() {
  Header header;
  TRY(read(code_, std::as_writable_bytes(std::span(&header, 1))));
  if (!std::equal(header.magic, header.magic + 2, magic)) {
    // The magic goes last: whoever finds it finds the code too.
    std::vector<std::byte> code = assemble();
    TRY(write({code_.value + boot_offset}, code));
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

Result<std::int64_t> RemoteProcess::call(StoppedThread& thread, long nr,
                                         std::array<std::uint64_t, 6> args) {
  bool entered = false;
  for (int signals = 0; signals < signals_max;) {
    if (!entered) {
      TRY(save_context(thread.regs));
      Regs regs = thread.regs;
      regs.rip = code_.value + boot_offset;
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

Result<void> RemoteProcess::map_arena(StoppedThread& thread, std::size_t bytes) {
  if (has_arena()) return {};
  INVARIANT(bytes % page_bytes == 0 && bytes > 0);
  const std::uint64_t at = TRY(roomy_address(pid_, bytes));
  // Recorded before it exists: if we die between, the next tracer knows where to look.
  const std::uint64_t record[] = {at, bytes};
  TRY(write({code_.value + offsetof(Header, arena)}, std::as_bytes(std::span(record))));
  std::int64_t got =
      TRY(call(thread, SYS_mmap,
               {at, bytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, ~0ULL, 0}));
  if (got < 0)
    return os_error(fmt::format("mmap({:#x}, {}) in process {}", at, bytes, pid_),
                    static_cast<int>(-got));
  ArenaHeader header{{magic[0], magic[1]}, bytes, {}};
  TRY(write({at}, std::as_bytes(std::span(&header, 1))));
  arena_ = {at};
  arena_bytes_ = bytes;
  return {};
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

struct RemoteProcess::Run {
  explicit Run(RemoteBatch& of) : batch(of) {}
  RemoteBatch& batch;
  int marker = 0;               // 0: watched by PTRACE_SYSCALL.
  std::uint64_t first = 0;      // Addresses of entries: the first,
  std::uint64_t unblocked = 0;  // the one that puts the signal mask back,
  std::uint64_t last = 0;       // the final marker.
  std::optional<Error> look_error = std::nullopt;
};

Result<void> RemoteProcess::run(StoppedThread& thread, RemoteBatch& batch) {
  const std::uint64_t sigmask = TRY(ptrace_get_sigmask(thread.tid));
  Run run{batch};
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

  iovec local[2] = {
      {batch.entries_.data(), batch.entries_.size() * sizeof(RemoteBatch::Entry)},
      {batch.data_.data() + (batch.data_.size() - batch.data_bytes_), batch.data_bytes_}};
  iovec remote[2] = {{reinterpret_cast<void*>(base), local[0].iov_len},
                     {reinterpret_cast<void*>(arena_.value + arena_bytes_ - batch.data_bytes_),
                      batch.data_bytes_}};
  const auto bytes = static_cast<ssize_t>(local[0].iov_len + local[1].iov_len);
  if (::process_vm_writev(pid_, local, 2, remote, 2, 0) != bytes)
    return os_error(fmt::format("process_vm_writev({}, {} bytes)", pid_, bytes));
  TRY(enter(thread, run));
  if (::process_vm_readv(pid_, local, 2, remote, 2, 0) != bytes)
    return os_error(fmt::format("process_vm_readv({}, {} bytes)", pid_, bytes));
  if (run.look_error) return std::move(*run.look_error);
  return {};
}

// Sets the injected registers and watches until the batch is through; afterwards the thread has its
// own registers again.
Result<void> RemoteProcess::enter(StoppedThread& thread, Run& run) {
  bool begun = false;
  // Each look of a batch, each signal and each stop of the watched kind takes a round.
  const std::size_t rounds_max = 4 * run.batch.entries_.size() + signals_max;
  for (std::size_t round = 0; round < rounds_max; ++round) {
    if (!begun) {
      TRY(save_context(thread.regs));
      Regs regs = thread.regs;
      regs.rip = code_.value + loop_offset;
      regs.rbx = run.first;
      regs.orig_rax = ~0ULL;
      TRY(ptrace_set_regs(thread.tid, regs));
      begun = true;
    }
    TRY(run.marker ? ptrace_cont(thread.tid, 0) : ptrace_syscall(thread.tid, 0));
    Stop stop = TRY(wait_stop(thread.tid, stop_limit_us));
    if (stop.exited()) return make_error(Errc::tracee_gone, "thread {} ended", thread.tid);
    if (stop.is_interrupt()) continue;
    Next next =
        TRY(stop.at_syscall() ? on_syscall(thread, run) : on_signal(thread, run, stop.signal()));
    if (next == Next::finished) return {};
    begun = next == Next::go_on;
  }
  return make_error(Errc::timeout, "thread {}: a batch of {} calls did not end", thread.tid,
                    run.batch.entries_.size());
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
  if (!in_injected_code(regs))
    return make_error(Errc::internal, "thread {}: signal {} at {:#x}, outside of the batch",
                      thread.tid, signal, regs.rip);
  auto executed = [&](std::uint64_t entry) {
    return regs.rbx > entry || (regs.rbx == entry && regs.rip > code_.value + loop_syscall);
  };
  if (!executed(run.first)) {
    TRY(deliver(thread, signal));
    return Next::begin_again;
  }
  if (executed(run.unblocked)) {
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
  TRY(ptrace_set_regs(thread.tid, thread.regs));
  return make_error(Errc::internal, "thread {}: signal {} in an injected call at {:#x}", thread.tid,
                    signal, regs.rip);
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
  for (int round = 0; round < settle_rounds_max; ++round) {
    if (!in_injected_code(thread.regs)) return {};
    TRY(ptrace_cont(thread.tid, 0));
    TRY(ptrace_interrupt(thread.tid));
    Stop stop = TRY(wait_stop(thread.tid, stop_limit_us));
    while (!stop.exited() && !stop.is_interrupt()) {
      // The interrupt is still to come; a signal of the program's own goes where it belongs.
      TRY(ptrace_cont(thread.tid, stop.at_signal() ? stop.signal() : 0));
      stop = TRY(wait_stop(thread.tid, stop_limit_us));
    }
    if (stop.exited()) return make_error(Errc::tracee_gone, "thread {} ended", thread.tid);
    thread.regs = TRY(ptrace_get_regs(thread.tid));
  }
  return make_error(Errc::timeout, "thread {} does not leave a batch that a dead tracer began",
                    thread.tid);
}

}  // namespace godwit::sys
