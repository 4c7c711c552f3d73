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
#include "sys/testing/plausible_error.h"

namespace godwit {

struct OuterTracer::Shared {
  std::atomic<std::int64_t> count{0};
  std::atomic<bool> attached{false};
  std::atomic<bool> struck{false};
  std::atomic<int> error{0};
  std::atomic<std::uint64_t> call{0};  // Which was struck.
  std::atomic<int> failed_with{0};
};

void OuterTracer::trace(pid_t worker, const Plan& plan, Shared& shared) {
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
      at_call(worker, tid, entry, plan, shared, failing);
    } else if ((status >> 16) == 0) {
      signal = WSTOPSIG(status);
    }
    ::ptrace(PTRACE_SYSCALL, tid, nullptr, signal);
  }
}

void OuterTracer::at_call(pid_t worker, pid_t tid, bool entry, const Plan& plan, Shared& shared,
                          pid_t& failing) {
  user_regs_struct regs{};
  if (::ptrace(PTRACE_GETREGS, tid, nullptr, &regs) != 0) return;  // Killed meanwhile.
  if (!entry && tid == failing) {
    failing = 0;
    regs.rax = static_cast<std::uint64_t>(-static_cast<std::int64_t>(shared.failed_with));
    ::ptrace(PTRACE_SETREGS, tid, nullptr, &regs);
    return;
  }
  const int error = sys::plausible_error(regs, static_cast<std::uint64_t>(plan.at));
  if (plan.strike == Strike::fail && (!entry || error == 0)) return;
  if (++shared.count != plan.at) return;
  shared.call = regs.orig_rax;
  shared.struck = true;
  switch (plan.strike) {
    case Strike::kill:
      ::kill(worker, SIGKILL);
      break;
    case Strike::act:
      plan.act();
      break;
    case Strike::fail:
      shared.failed_with = error;
      failing = tid;
      regs.orig_rax = ~0ull;  // Not executed.
      ::ptrace(PTRACE_SETREGS, tid, nullptr, &regs);
      break;
  }
}

Result<OuterTracer> OuterTracer::start(pid_t worker, Plan plan) {
  void* memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
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
std::string OuterTracer::what() const {
  return fmt::format("system call {}, error {}", shared_->call.load(), shared_->failed_with.load());
}

}  // namespace godwit
