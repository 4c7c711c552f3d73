#include "sys/tracing.h"

#include <elf.h>
#include <sched.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstring>

#include "base/clock.h"
#include "sys/cpuid.h"
#include "sys/proc.h"
#include "sys/tracee_error.h"

namespace godwit::sys {
namespace {

// Newer than the headers of Debian 12, or absent from glibc's.
constexpr int request_get_rseq_configuration = 0x420f;
constexpr int request_get_syscall_user_dispatch_config = 0x4211;

constexpr std::int64_t spin_us = 2'000;
constexpr std::int64_t doubt_us = 5'000;  // Between two looks at whether it lives at all.
constexpr long sleep_between_looks_ns = 100'000;

long request(int what, pid_t tid, unsigned long addr, unsigned long data) {
  return ::ptrace(static_cast<__ptrace_request>(what), tid, addr, data);
}

Result<void> simple(int what, const char* name, pid_t tid, unsigned long addr, unsigned long data) {
  if (request(what, tid, addr, data) < 0) return tracee_error(name, tid);
  return {};
}

unsigned long as_word(const void* p) { return reinterpret_cast<unsigned long>(p); }

}  // namespace

Result<void> ptrace_seize(pid_t tid, unsigned long options) {
  return simple(PTRACE_SEIZE, "PTRACE_SEIZE", tid, 0, options);
}
Result<void> ptrace_set_options(pid_t tid, unsigned long options) {
  return simple(PTRACE_SETOPTIONS, "PTRACE_SETOPTIONS", tid, 0, options);
}
Result<void> ptrace_interrupt(pid_t tid) {
  return simple(PTRACE_INTERRUPT, "PTRACE_INTERRUPT", tid, 0, 0);
}
Result<void> ptrace_cont(pid_t tid, int signal) {
  return simple(PTRACE_CONT, "PTRACE_CONT", tid, 0, static_cast<unsigned long>(signal));
}
Result<void> ptrace_syscall(pid_t tid, int signal) {
  return simple(PTRACE_SYSCALL, "PTRACE_SYSCALL", tid, 0, static_cast<unsigned long>(signal));
}
Result<void> ptrace_detach(pid_t tid, int signal) {
  return simple(PTRACE_DETACH, "PTRACE_DETACH", tid, 0, static_cast<unsigned long>(signal));
}

Result<Regs> ptrace_get_regs(pid_t tid) {
  Regs regs{};
  TRY(simple(PTRACE_GETREGS, "PTRACE_GETREGS", tid, 0, as_word(&regs)));
  return regs;
}

Result<void> ptrace_set_regs(pid_t tid, const Regs& regs) {
  return simple(PTRACE_SETREGS, "PTRACE_SETREGS", tid, 0, as_word(&regs));
}

Result<std::string> ptrace_get_xstate(pid_t tid) {
  char state[16 * 1024];  // AMX needs 11 KiB; the kernel answers the true size.
  iovec area{state, sizeof state};
  TRY(simple(PTRACE_GETREGSET, "PTRACE_GETREGSET(NT_X86_XSTATE)", tid, NT_X86_XSTATE,
             as_word(&area)));
  if (area.iov_len == sizeof state)
    return make_error(Errc::unsupported, "thread {} has more than {} bytes of register state", tid,
                      sizeof state);
  return std::string(state, area.iov_len);
}

Result<void> ptrace_set_xstate(pid_t tid, const std::string& xstate) {
  // Another processor's area has another size, of which the kernel takes no other than its own.
  // What both have is at the same place (cpuid.h), and where there is more here it isn't in use.
  static const std::size_t bytes_here = xsave_bytes();
  std::string fitted;
  if (xstate.size() != bytes_here) (fitted = xstate).resize(bytes_here);
  const std::string& content = fitted.empty() ? xstate : fitted;
  iovec area{const_cast<char*>(content.data()), content.size()};
  return simple(PTRACE_SETREGSET, "PTRACE_SETREGSET(NT_X86_XSTATE)", tid, NT_X86_XSTATE,
                as_word(&area));
}

Result<std::uint64_t> ptrace_get_sigmask(pid_t tid) {
  std::uint64_t mask = 0;
  TRY(simple(PTRACE_GETSIGMASK, "PTRACE_GETSIGMASK", tid, sizeof mask, as_word(&mask)));
  return mask;
}

Result<void> ptrace_set_sigmask(pid_t tid, std::uint64_t mask) {
  return simple(PTRACE_SETSIGMASK, "PTRACE_SETSIGMASK", tid, sizeof mask, as_word(&mask));
}

Result<siginfo_t> ptrace_get_siginfo(pid_t tid) {
  siginfo_t info{};
  TRY(simple(PTRACE_GETSIGINFO, "PTRACE_GETSIGINFO", tid, 0, as_word(&info)));
  return info;
}

Result<std::vector<siginfo_t>> ptrace_peek_siginfo(pid_t tid, bool shared) {
  constexpr int at_once = 64;
  std::vector<siginfo_t> queue;
  while (true) {
    siginfo_t chunk[at_once];
    __ptrace_peeksiginfo_args args{};
    args.off = queue.size();
    args.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0;
    args.nr = at_once;
    long n = request(PTRACE_PEEKSIGINFO, tid, as_word(&args), as_word(chunk));
    if (n < 0) return tracee_error("PTRACE_PEEKSIGINFO", tid);
    queue.insert(queue.end(), chunk, chunk + n);
    if (n < at_once) return queue;
  }
}

Result<RseqConfig> ptrace_get_rseq(pid_t tid) {
  struct {
    std::uint64_t pointer;
    std::uint32_t size, signature, flags, pad;
  } raw{};
  long n = request(request_get_rseq_configuration, tid, sizeof raw, as_word(&raw));
  if (n < 0) return tracee_error("PTRACE_GET_RSEQ_CONFIGURATION", tid);
  return RseqConfig{raw.pointer, raw.size, raw.signature, raw.flags};
}

Result<std::optional<SeccompProgram>> ptrace_get_seccomp(pid_t tid, unsigned index) {
  long count = request(PTRACE_SECCOMP_GET_FILTER, tid, index, 0);
  if (count < 0 && (errno == ENOENT || errno == EINVAL)) return std::optional<SeccompProgram>();
  if (count < 0) return tracee_error("PTRACE_SECCOMP_GET_FILTER", tid);
  SeccompProgram program;
  program.instructions.resize(static_cast<std::size_t>(count));
  if (request(PTRACE_SECCOMP_GET_FILTER, tid, index, as_word(program.instructions.data())) < 0)
    return tracee_error("PTRACE_SECCOMP_GET_FILTER", tid);
  struct {
    std::uint64_t filter_off, flags;
  } metadata{index, 0};
  if (request(PTRACE_SECCOMP_GET_METADATA, tid, sizeof metadata, as_word(&metadata)) < 0)
    return tracee_error("PTRACE_SECCOMP_GET_METADATA", tid);
  program.flags = metadata.flags;
  return std::optional<SeccompProgram>(std::move(program));
}

Result<bool> ptrace_syscall_dispatch(pid_t tid) {
  struct {
    std::uint64_t mode, selector, offset, len;
  } raw{};
  if (request(request_get_syscall_user_dispatch_config, tid, sizeof raw, as_word(&raw)) >= 0)
    return raw.mode != 0;
  // Before 6.4 there is no such request, and no way to know: those kernels are told to trust.
  if (errno == EIO || errno == EINVAL) return false;
  return tracee_error("PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG", tid);
}

bool Stop::exited() const { return WIFEXITED(status) || WIFSIGNALED(status); }
int Stop::signal() const { return WSTOPSIG(status); }
int Stop::event() const { return status >> 16; }
bool Stop::at_syscall() const { return !exited() && event() == 0 && signal() == (SIGTRAP | 0x80); }
bool Stop::is_interrupt() const { return !exited() && event() == PTRACE_EVENT_STOP; }
bool Stop::at_signal() const { return !exited() && event() == 0 && !at_syscall(); }

namespace {

// Nothing yet: nullopt.
Result<std::optional<Stop>> look_for_stop(pid_t tid) {
  Stop stop;
  pid_t got = ::waitpid(tid, &stop.status, __WALL | WNOHANG);
  if (got == tid) return std::optional<Stop>(stop);
  if (got < 0 && errno == ECHILD)
    return make_error(Errc::tracee_gone, "thread {} is no longer traced", tid);
  if (got < 0 && errno != EINTR) return os_error(fmt::format("waitpid({})", tid));
  return std::optional<Stop>();
}

// Between two looks.
void wait_a_little(std::int64_t waited_us) {
  if (waited_us < spin_us) {
    ::sched_yield();
  } else {
    timespec pause{0, sleep_between_looks_ns};
    ::nanosleep(&pause, nullptr);
  }
}

// What waitpid would have told of the stop that this siginfo belongs to.
Stop stop_of(const siginfo_t& info) {
  Stop stop;
  if (info.si_code > 0 && (info.si_code >> 8) == PTRACE_EVENT_STOP) {
    stop.status = PTRACE_EVENT_STOP << 16 | info.si_signo << 8 | 0x7f;
  } else if (info.si_signo == SIGTRAP && info.si_code == (SIGTRAP | 0x80)) {
    stop.status = (SIGTRAP | 0x80) << 8 | 0x7f;
  } else {
    stop.status = info.si_signo << 8 | 0x7f;
  }
  return stop;
}

Error did_not_stop(pid_t tid, std::int64_t limit_us) {
  return Error(Errc::timeout,
               fmt::format("thread {} did not stop within {} ms", tid, limit_us / 1000));
}

}  // namespace

Result<Stop> wait_stop(pid_t tid, std::int64_t limit_us) {
  const std::int64_t start = monotonic_us();
  std::int64_t next_doubt_us = spin_us;
  bool dead = false;
  while (true) {
    std::optional<Stop> stop = TRY(look_for_stop(tid));
    if (stop) return *stop;
    // The end of a leader isn't told before we have waited for all of its threads, too.
    if (dead) return make_error(Errc::tracee_gone, "thread {} has ended", tid);
    std::int64_t waited = monotonic_us() - start;
    if (waited > limit_us) return did_not_stop(tid, limit_us);
    if (waited > next_doubt_us) {
      dead = !is_our_tracee(tid);
      next_doubt_us = waited + doubt_us;
    }
    if (!dead) wait_a_little(waited);
  }
}

Result<Stop> current_stop(pid_t tid, std::int64_t limit_us) {
  const std::int64_t start = monotonic_us();
  for (bool interrupted = false;;) {
    // Answered only while it stands.
    Result<siginfo_t> info = ptrace_get_siginfo(tid);
    if (info.ok()) return stop_of(*info);
    if (info.error().code() != Errc::tracee_gone) return std::move(info).error();
    // It runs, or is gone: then there is the end to be waited for.
    if (!interrupted) {
      Result<void> asked = ptrace_interrupt(tid);
      if (!asked.ok() && asked.error().code() != Errc::tracee_gone) return std::move(asked).error();
      interrupted = asked.ok();
    }
    std::optional<Stop> stop = TRY(look_for_stop(tid));
    if (stop) return *stop;
    std::int64_t waited = monotonic_us() - start;
    if (waited > limit_us) return did_not_stop(tid, limit_us);
    if (waited > spin_us && !is_our_tracee(tid))
      return make_error(Errc::tracee_gone, "thread {} has ended", tid);
    wait_a_little(waited);
  }
}

bool is_our_tracee(pid_t tid) {
  Result<ProcStatus> status = read_status(tid);
  return status.ok() && status->tracer == ::gettid() && status->state != 'Z' &&
         status->state != 'X';
}

}  // namespace godwit::sys
