#include "outer_tracer.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <utility>

#include "base/clock.h"

namespace godwit {

struct OuterTracer::Shared {
  std::atomic<std::int64_t> count{0};
  std::atomic<bool> attached{false};
  std::atomic<bool> struck{false};
  std::atomic<int> error{0};
};

namespace {

// A worker that can't end by itself would never report anything; and waiting for one's own tracee
// can't fail but by its absence, so no answer to it is right. These go through.
bool may_fail(std::uint64_t call) {
  return call != SYS_exit && call != SYS_exit_group && call != SYS_rt_sigreturn &&
         call != SYS_wait4;
}

}  // namespace

void OuterTracer::trace(pid_t worker, Plan plan, Shared& shared) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  constexpr unsigned long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE;
  if (::ptrace(PTRACE_SEIZE, worker, nullptr, options) != 0 ||
      ::ptrace(PTRACE_INTERRUPT, worker, nullptr, nullptr) != 0) {
    shared.error = errno;
    ::_exit(1);
  }
  shared.attached = true;
  std::set<pid_t> inside;  // Threads in a system call.
  pid_t failing = 0;
  while (true) {
    int status = 0;
    const pid_t tid = ::waitpid(-1, &status, __WALL);
    if (tid < 0 && errno == EINTR) continue;
    if (tid < 0) ::_exit(0);
    if (!WIFSTOPPED(status)) continue;
    long signal = 0;
    if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
      const bool entry = inside.insert(tid).second;
      if (!entry) inside.erase(tid);
      if (++shared.count == plan.at && plan.fail_with == 0) {
        shared.struck = true;
        ::kill(worker, SIGKILL);
        continue;
      }
      user_regs_struct regs{};
      if (plan.fail_with != 0 && entry && !shared.struck && shared.count >= plan.at &&
          ::ptrace(PTRACE_GETREGS, tid, nullptr, &regs) == 0 && may_fail(regs.orig_rax)) {
        shared.struck = true;
        failing = tid;
        regs.orig_rax = ~0ull;  // Not executed.
        ::ptrace(PTRACE_SETREGS, tid, nullptr, &regs);
      } else if (!entry && tid == failing && ::ptrace(PTRACE_GETREGS, tid, nullptr, &regs) == 0) {
        failing = 0;
        regs.rax = static_cast<std::uint64_t>(-static_cast<std::int64_t>(plan.fail_with));
        ::ptrace(PTRACE_SETREGS, tid, nullptr, &regs);
      }
    } else if ((status >> 16) == 0) {
      signal = WSTOPSIG(status);
    }
    ::ptrace(PTRACE_SYSCALL, tid, nullptr, signal);
  }
}

Result<OuterTracer> OuterTracer::start(pid_t worker, Plan plan) {
  void* memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return os_error("mmap(shared page)");
  auto* shared = new (memory) Shared();
  const pid_t pid = ::fork();
  if (pid < 0) return os_error("fork");
  if (pid == 0) trace(worker, plan, *shared);
  OuterTracer tracer(pid, shared);
  const std::int64_t until_us = monotonic_us() + 10'000'000;
  while (!shared->attached) {
    if (shared->error != 0) return os_error(fmt::format("PTRACE_SEIZE({})", worker), shared->error);
    if (monotonic_us() > until_us) return make_error(Errc::timeout, "PTRACE_SEIZE({})", worker);
    ::sched_yield();
  }
  return tracer;
}

OuterTracer::OuterTracer(OuterTracer&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)), shared_(std::exchange(other.shared_, nullptr)) {}

OuterTracer::~OuterTracer() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  if (shared_ != nullptr) ::munmap(shared_, sizeof(Shared));
}

std::int64_t OuterTracer::count() const { return shared_->count; }
bool OuterTracer::struck() const { return shared_->struck; }

}  // namespace godwit
