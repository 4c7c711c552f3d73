// Problem. A stop must not be seen by the program, and our death at any instruction must not
// either. Both the freezer and PTRACE_INTERRUPT kick sleeping threads out of their system calls.
// Most calls then show one of the kernel's restart codes in rax and are restarted when the thread
// goes on, by the kernel itself, whether we live or not. But some answer EINTR after a mere stop
// (signal(7): epoll_wait, semop, sigtimedwait, socket calls with a timeout, read of an inotify
// descriptor, ...). That must be undone before the thread runs again; so somebody has to hold it
// until then, who outlives us.
//
// Way (v2 freezer, kernels from 5.2):
//   1. cgroup.freeze = 1. Threads trap in the kernel, on their way back to the program.
//   2. PTRACE_SEIZE, PTRACE_INTERRUPT all. A frozen v2 task answers: a ptrace trap has priority
//   over the
//      freezer's. If we die here the cgroup stays frozen: recover() starts over and finishes the
//      job.
//   3. Every EINTR of such a call becomes -ERESTARTNOHAND in rax: not a rewound program counter,
//   for
//      then a signal that comes before the thread goes on would find a call that hasn't begun, and
//      an epoll_pwait(2) would sleep on. With the code, the kernel decides at the very moment the
//      thread goes on: a handler runs -> EINTR, none -> restart.
//   4. cgroup.freeze = 0: frozen tasks can't execute injected calls. Threads stay in their ptrace
//   stops.
// From 3 on the death of the tracer is harmless: every context is one that the kernel knows how to
// continue.
//
// A cgroup v2 can be mounted beside v1 hierarchies on any kernel since 5.2, no controller is
// needed. Where only the v1 freezer is there, steps 1 and 4 fall away (its tasks answer no ptrace),
// and a tracer that dies between 2 and 3, some 20 us a thread, can leak an EINTR.
//
// Measured on 6.18 with 2 cores, freeze to thaw: see README.md.

#include "capture/freeze.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <unordered_set>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "capture/restart.h"
#include "capture/rseq.h"
#include "capture/sleep_clock.h"
#include "sys/pidfd.h"
#include "sys/vdso.h"

namespace godwit::capture {
namespace {

// Tasks stop within microseconds of their turn. What has none for so long keeps its whole timeouts.
constexpr std::int64_t frozen_limit_us = 5'000;
constexpr int list_rounds_max = 1'000;               // Each finds at least one new thread.
constexpr std::int64_t attach_retry_us = 3'000'000;  // A dying tracer lets go within that.

constexpr int undo_attempts_max = 5;

constexpr std::size_t status_files_max = 256;
// A program that does nothing but read clocks is out of its vdso once in about ten looks.
constexpr int vdso_looks_max = 1'000;
constexpr timespec vdso_pause{0, 20'000};

// Seccomp filters don't see injected calls while we trace.
constexpr unsigned long seize_options = PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP;

std::string freeze_file(const TreeRef& tree) {
  return tree.freezer_path + (tree.freezer_v2 ? "/cgroup.freeze" : "/freezer.state");
}

bool is_gone(const Error& error) { return error.code() == Errc::tracee_gone; }

// Whoever called vfork(2) (posix_spawn(3) does) waits uninterruptibly until its child has executed
// something or ended: no stop reaches it, and while the child stands it never comes out.
bool waits_in_vfork(pid_t tid) {
  Result<sys::ProcStat> stat = sys::read_stat(tid, tid);
  if (!stat.ok() || stat->state != 'D') return false;
  Result<sys::ProcSyscall> call = sys::read_syscall(tid, tid);
  return call.ok() && !call->running &&
         (call->nr == SYS_vfork || call->nr == SYS_clone || call->nr == SYS_clone3);
}

constexpr std::int64_t vfork_look_us = 3'000;        // After which a thread is suspected of it.
constexpr timespec vfork_pause{0, 1'000'000};        // For the child to get through.
constexpr std::int64_t vfork_limit_us = 5'000'000;   // Some children do more than to execute.
constexpr std::int64_t vfork_let_go_us = 1'000'000;  // See let_go_of_all().

}  // namespace

bool repair_interrupted_call(sys::Regs& regs) {
  if (!sys::in_syscall(regs) || static_cast<std::int64_t>(regs.rax) != -EINTR) return false;
  switch (regs.orig_rax) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_rt_sigtimedwait:
    case SYS_accept:
    case SYS_accept4:
    case SYS_connect:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_recvmmsg:
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_sendmmsg:
    // Sockets with a timeout and inotify; every other file answers ERESTARTSYS.
    case SYS_read:
    case SYS_readv:
    case SYS_write:
    case SYS_writev:
    case SYS_io_getevents:
    case SYS_io_pgetevents:
    // Undone or without effect when interrupted.
    case SYS_fallocate:
    case SYS_madvise:
    case SYS_getrandom:
      regs.rax = static_cast<std::uint64_t>(sys::err_restartnohand);
      return true;
    default:
      // Notably close(2): the descriptor is gone, a second call could close another one.
      return false;
  }
}

Result<std::vector<pid_t>> list_tree_threads(const TreeRef& tree) {
  std::string text =
      TRY(read_file(tree.freezer_path + (tree.freezer_v2 ? "/cgroup.threads" : "/tasks")));
  std::vector<pid_t> tids;
  for (const char* at = text.c_str(); *at != '\0';) {
    char* end = nullptr;
    long tid = std::strtol(at, &end, 10);
    if (end == at) break;
    if (tid > 0) tids.push_back(static_cast<pid_t>(tid));  // 0: not visible from our PID namespace.
    at = *end == '\n' ? end + 1 : end;
  }
  return tids;
}

struct FrozenTree::Known {
  pid_t tid = 0, pid = 0;
  pid_t tid_inside = 0, pid_inside = 0;
  std::optional<SleepSample> sleep;
  std::optional<sys::InterruptedSleep> noted;
  std::uint64_t voluntary_switches = 0;  // Where `noted` is set.
  UniqueFd status;
  bool seized = false;
  bool collected = false;
  bool gone = false;
};

FrozenTree::FrozenTree(FrozenTree&& other) noexcept
    : tree_(std::move(other.tree_)),
      processes_(std::move(other.processes_)),
      seized_(std::exchange(other.seized_, {})),
      frozen_at_ns_(other.frozen_at_ns_),
      held_(std::exchange(other.held_, false)),
      complete_(other.complete_),
      committed_(other.committed_) {}

FrozenTree::~FrozenTree() {
  if (committed_) return;
  Result<void> thawed = thaw();
  if (!thawed.ok()) LOG(error, "thaw of {}: {}", tree_.freezer_path, thawed.error().what());
}

Result<FrozenProcess*> FrozenTree::find(pid_t pid_inside) {
  for (FrozenProcess& process : processes_)
    if (process.pid_inside == pid_inside) return &process;
  return make_error(Errc::not_found, "no process {} in the tree", pid_inside);
}

pid_t FrozenTree::node_pid(pid_t pid_inside) const {
  for (const FrozenProcess& process : processes_)
    if (process.pid_inside == pid_inside) return process.pid;
  return 0;
}

Result<sys::RemoteProcess*> FrozenTree::remote(FrozenProcess& process) {
  if (!process.remote)
    process.remote = TRY(sys::RemoteProcess::open(process.pid, process.pid_inside));
  return &*process.remote;
}

FrozenProcess& FrozenTree::process_of(pid_t pid, pid_t pid_inside) {
  for (FrozenProcess& process : processes_)
    if (process.pid == pid) return process;
  FrozenProcess& process = processes_.emplace_back();
  process.pid = pid;
  process.pid_inside = pid_inside;
  return process;
}

Result<void> FrozenTree::hold() {
  if (held_) return {};
  held_ = true;  // As far as thaw() is concerned, also if this fails.
  return write_file(freeze_file(tree_), tree_.freezer_v2 ? "1" : "FROZEN");
}

// Whether every task has come to rest in the freezer: only then each has been woken by it, and a
// count of wake-ups tells whether there was another one (sleep_clock.cc).
bool FrozenTree::all_frozen() const {
  if (!held_ || !tree_.freezer_v2) return false;
  for (const std::int64_t began = monotonic_us(); monotonic_us() - began < frozen_limit_us;) {
    Result<std::string> events = read_file(tree_.freezer_path + "/cgroup.events");
    if (!events.ok()) return false;
    if (events->find("frozen 1") != std::string::npos) return true;
  }
  return false;
}

Result<void> FrozenTree::unhold() {
  if (!held_) return {};
  Result<void> thawed = write_file(freeze_file(tree_), tree_.freezer_v2 ? "0" : "THAWED");
  // A group that was removed holds nobody.
  if (!thawed.ok() && thawed.error().sys_errno() != ENOENT && thawed.error().sys_errno() != ENODEV)
    return thawed;
  held_ = false;
  return {};
}

// What can be found out while the program still runs is not found out while it is stopped.
Result<std::vector<FrozenTree::Known>> FrozenTree::look_before(const FreezeHints& hints) const {
  std::vector<Known> known;
  for (pid_t tid : TRY(list_tree_threads(tree_))) {
    // Kept open for describe(), within reason.
    Result<UniqueFd> file = open_fd(sys::proc_path(tid, tid, "status"), O_RDONLY);
    if (!file.ok()) continue;  // Gone; what else it may be shows when it is seized.
    Result<sys::ProcStatus> status = sys::read_status(*file);
    if (!status.ok() && is_gone(status.error())) continue;
    sys::ProcStatus s = TRY(std::move(status));
    Known& k = known.emplace_back();
    if (known.size() <= status_files_max) k.status = std::move(*file);
    k.tid = tid, k.pid = s.tgid, k.tid_inside = s.ns_pid.back(), k.pid_inside = s.ns_tgid.back();
    if (hints.measure_sleeps) k.sleep = SleepClock::sample(k.pid, k.tid);
    for (const sys::InterruptedSleep& sleep : hints.known_sleeps) {
      if (sleep.tid_inside != k.tid_inside) continue;
      Result<std::uint64_t> switches = sys::read_voluntary_switches(k.pid, k.tid);
      if (!switches.ok()) continue;
      k.noted = sleep, k.voluntary_switches = *switches;
    }
  }
  return known;
}

// The answer: whether it is seized now; no, if it is gone.
Result<bool> FrozenTree::seize_one(pid_t tid, std::int64_t patience_us) {
  const std::int64_t start = monotonic_us();
  while (true) {
    Result<void> seized = sys::ptrace_seize(tid, seize_options);
    if (seized.ok()) break;
    if (is_gone(seized.error())) return false;
    if (seized.error().sys_errno() != EPERM) return std::move(seized).error();
    Result<sys::ProcStatus> status = sys::read_status(tid);
    if (!status.ok() && is_gone(status.error())) return false;
    if (status.ok() && (status->state == 'Z' || status->state == 'X')) return false;
    if (!status.ok() || status->tracer == 0) return std::move(seized).error();
    // Somebody traces it: a debugger, or a tracer of ours that is just dying.
    if (monotonic_us() - start > patience_us)
      return make_error(Errc::refused, "thread {} ({}) is traced by process {}", tid, status->name,
                        status->tracer);
    timespec pause{0, 500'000};
    ::nanosleep(&pause, nullptr);
  }
  seized_.push_back(tid);
  Result<void> interrupted = sys::ptrace_interrupt(tid);
  if (!interrupted.ok() && !is_gone(interrupted.error())) return std::move(interrupted).error();
  return true;  // If it is gone, waiting for it tells.
}

// Seizes and interrupts threads that weren't known; the answer: whether the list must be looked at
// again, since there were any, or some were gone: what is believed gone must not be listed any
// more.
Result<bool> FrozenTree::seize_new(std::vector<Known>& known) {
  std::unordered_set<pid_t> listed;
  for (pid_t tid : TRY(list_tree_threads(tree_))) listed.insert(tid);
  for (const Known& k : known) {
    if (k.gone && listed.contains(k.tid))
      return make_error(Errc::internal, "thread {} neither stops nor ends", k.tid);
    if (k.seized) listed.erase(k.tid);
  }
  std::erase_if(known, [&](const Known& k) { return !k.seized && !listed.contains(k.tid); });
  for (const Known& k : known) listed.erase(k.tid);
  for (pid_t tid : listed) known.emplace_back().tid = tid;
  bool any = false;
  for (Known& k : known) {
    if (k.seized) continue;
    any = true;
    k.seized = TRY(seize_one(k.tid, attach_retry_us));
  }
  std::erase_if(known, [](const Known& k) { return !k.seized; });
  return any;
}

Result<sys::Stop> FrozenTree::first_stop(pid_t tid) {
  Result<sys::Stop> stop = sys::wait_stop(tid, vfork_look_us);
  if (stop.ok() || stop.error().code() != Errc::timeout) return stop;
  vforking_ = waits_in_vfork(tid);
  if (vforking_) return make_error(Errc::timeout, "thread {} waits in vfork(2)", tid);
  return sys::wait_stop(tid, sys::stop_limit_us);
}

Result<void> FrozenTree::collect(Known& k) {
  if (k.pid == 0) {
    sys::ProcStatus s = TRY(sys::read_status(k.tid));
    k.pid = s.tgid, k.tid_inside = s.ns_pid.back(), k.pid_inside = s.ns_tgid.back();
  }
  FrozenThread thread;
  // A signal on its way is delivered before the stop that we asked for.
  while (true) {
    sys::Stop stop = TRY(first_stop(k.tid));
    if (stop.exited()) return make_error(Errc::tracee_gone, "thread {} ended", k.tid);
    thread.stop_signal = stop.signal() == SIGTRAP ? 0 : stop.signal();
    if (stop.is_interrupt()) break;
    TRY(sys::ptrace_cont(k.tid, stop.at_signal() ? stop.signal() : 0));
  }
  thread.tid = k.tid;
  thread.tid_inside = k.tid_inside;
  thread.status = std::move(k.status);
  thread.stopped_at_ns = monotonic_ns();
  thread.regs = TRY(sys::ptrace_get_regs(k.tid));
  if (repair_interrupted_call(thread.regs) || TRY(abort_restartable_sequence(k.tid, thread.regs)))
    TRY(sys::ptrace_set_regs(k.tid, thread.regs));
  if (k.sleep) {
    thread.asleep_since_ns = k.sleep->asleep_since_ns(thread.regs);
    thread.restarted_nr = k.sleep->restarted_nr(thread.regs);
  }
  if (k.noted && k.noted->explains(thread.regs)) {
    thread.restarted_nr = k.noted->nr;
    if (k.noted->lasts(k.voluntary_switches, thread.regs)) thread.ends_at_ns = k.noted->ends_at_ns;
  }
  FrozenProcess& process = process_of(k.pid, k.pid_inside);
  if (k.tid == k.pid) {
    process.threads.insert(process.threads.begin(), std::move(thread));
  } else {
    process.threads.push_back(std::move(thread));
  }
  return {};
}

Result<void> FrozenTree::seize_all(std::vector<Known>& known) {
  for (int round = 0; round < list_rounds_max; ++round) {
    bool any = TRY(seize_new(known));
    for (Known& k : known) {
      if (k.collected) continue;
      Result<void> collected = collect(k);
      if (!collected.ok() && !is_gone(collected.error())) return collected;
      k.gone = !collected.ok();
      k.collected = true;
    }
    if (!any) {
      complete_ = true;
      return {};
    }
  }
  return make_error(Errc::timeout, "{} makes threads faster than they can be stopped",
                    tree_.freezer_path);
}

// Threads that are still in a batch of a tracer that died: let them get through it.
Result<void> FrozenTree::settle_orphans() {
  for (FrozenProcess& process : processes_) {
    const sys::VdsoPlace vdso = TRY(sys::find_vdso(process.pid));
    for (FrozenThread& thread : process.threads) {
      if (!vdso.contains(thread.regs.rip)) continue;
      sys::RemoteProcess* remote = TRY(this->remote(process));
      if (!remote->in_injected_code(thread.regs)) continue;
      TRY(remote->settle(thread));
      if (repair_interrupted_call(thread.regs)) TRY(sys::ptrace_set_regs(thread.tid, thread.regs));
    }
  }
  return {};
}

namespace {

// For the stop that was asked for; a signal on its way is delivered before.
Result<sys::Stop> wait_interrupted(pid_t tid) {
  while (true) {
    sys::Stop stop = TRY(sys::wait_stop(tid, sys::stop_limit_us));
    if (stop.exited()) return make_error(Errc::tracee_gone, "thread {} ended", tid);
    if (stop.is_interrupt()) return stop;
    TRY(sys::ptrace_cont(tid, stop.at_signal() ? stop.signal() : 0));
  }
}

}  // namespace

// The way out of a function is a matter of nanoseconds, but how far the thread comes between two
// stops is the scheduler's business: it may also be inside again.
Result<void> FrozenTree::leave_vdso() {
  for (FrozenProcess& process : processes_) {
    const sys::VdsoPlace vdso = TRY(sys::find_vdso(process.pid));
    for (FrozenThread& thread : process.threads) {
      for (int looks = 0; vdso.contains(thread.regs.rip); ++looks) {
        if (looks == vdso_looks_max) {
          return make_error(Errc::timeout, "thread {} doesn't come out of its vdso",
                            thread.tid_inside);
        }
        TRY(sys::ptrace_cont(thread.tid, 0));
        ::nanosleep(&vdso_pause, nullptr);
        TRY(sys::ptrace_interrupt(thread.tid));
        const sys::Stop stop = TRY(wait_interrupted(thread.tid));
        thread.stop_signal = stop.signal() == SIGTRAP ? 0 : stop.signal();
        thread.regs = TRY(sys::ptrace_get_regs(thread.tid));
        if (repair_interrupted_call(thread.regs) ||
            TRY(abort_restartable_sequence(thread.tid, thread.regs)))
          TRY(sys::ptrace_set_regs(thread.tid, thread.regs));
      }
    }
  }
  return {};
}

Result<void> FrozenTree::unmap_arenas() {
  for (FrozenProcess& process : processes_) {
    if (!process.remote || !process.remote->has_arena() || process.threads.empty()) continue;
    // Nothing is taken away from under a thread that a dead tracer left in a batch.
    for (FrozenThread& thread : process.threads)
      if (process.remote->in_injected_code(thread.regs)) TRY(process.remote->settle(thread));
    TRY(process.remote->unmap_arena(process.threads.front()));
  }
  return {};
}

namespace {

// Whatever the thread does: an error of ours may have come at any moment. One that was killed under
// us must be waited for by us, its tracer: until then its process can't be reaped.
Result<void> let_go(pid_t tid) {
  Result<sys::Stop> stop = sys::current_stop(tid, sys::stop_limit_us);
  if (!stop.ok() && is_gone(stop.error())) {
    Result<sys::ProcStatus> status = sys::read_status(tid);
    if (!status.ok() && is_gone(status.error())) return {};
    if (status.ok() && status->tracer != ::gettid()) return {};
  }
  if (TRY(std::move(stop)).exited()) return {};
  // Its stop may not have been looked at yet.
  sys::Regs regs = TRY(sys::ptrace_get_regs(tid));
  if (repair_interrupted_call(regs)) TRY(sys::ptrace_set_regs(tid, regs));
  return sys::ptrace_detach(tid, stop->at_signal() ? stop->signal() : 0);
}

// Takes back a change to the program. The answer: whether that was possible.
template <typename Undo>
bool insist(Undo undo) {
  for (int attempt = 1; attempt <= undo_attempts_max; ++attempt) {
    Result<void> undone = undo();
    if (undone.ok()) return true;
    LOG(warn, "rollback, attempt {} of {}: {}", attempt, undo_attempts_max, undone.error().what());
  }
  return false;
}

}  // namespace

Result<void> FrozenTree::seal() {
  TRY(unmap_arenas());
  return hold();
}

// Preconditions: nothing is injected any more before the threads go on: each stop counts as a
// switch.
std::vector<sys::InterruptedSleep> FrozenTree::interrupted_sleeps() {
  std::vector<sys::InterruptedSleep> sleeps;
  for (FrozenProcess& process : processes_) {
    Result<sys::RemoteProcess*> memory = remote(process);
    if (!memory.ok()) continue;
    for (const FrozenThread& thread : process.threads) {
      if (static_cast<std::int64_t>(thread.regs.rax) != sys::err_restart_restartblock) continue;
      image::Thread described;
      Result<sys::Regs> regs =
          describe_restart(process, thread, **memory, frozen_at_ns_, described);
      Result<std::uint64_t> switches = sys::read_voluntary_switches(process.pid, thread.tid);
      if (!regs.ok() || !switches.ok()) continue;  // Its timeout begins anew.
      // One with an absolute timeout is noted too: for the call that it is.
      sys::InterruptedSleep& sleep = sleeps.emplace_back();
      sleep.tid_inside = thread.tid_inside, sleep.nr = static_cast<std::int64_t>(regs->orig_rax);
      const std::uint64_t args[] = {regs->rdi, regs->rsi, regs->rdx, regs->r10, regs->r8, regs->r9};
      std::copy(std::begin(args), std::end(args), sleep.args);
      sleep.ends_at_ns = frozen_at_ns_ + described.restart().remaining_ns();
      sleep.voluntary_switches = *switches;
    }
  }
  return sleeps;
}

void FrozenTree::keep_timeouts() {
  for (FrozenProcess& process : processes_) {
    for (FrozenThread& thread : process.threads) {
      if (!thread.asleep_since_ns) continue;
      Result<sys::RemoteProcess*> memory = remote(process);
      if (!memory.ok()) continue;  // Gone.
      if (Result<void> kept = keep_timeout(process, thread, **memory, frozen_at_ns_); !kept.ok())
        LOG(debug, "timeout of thread {}: {}", thread.tid_inside, kept.error().what());
    }
  }
}

// Preconditions: as unmap_arena's. A program that was killed has none.
bool FrozenTree::take_back_arenas() {
  bool adrift = false, any = false;
  for (FrozenProcess& process : processes_) {
    if (!process.remote) continue;
    adrift = adrift || process.remote->adrift();
    any = any || process.remote->has_arena();
  }
  if (adrift) return false;
  if (!any) return true;
  return insist([&] { return unhold(); }) && insist([&]() -> Result<void> {
           Result<void> unmapped = unmap_arenas();
           if (unmapped.ok() || !is_gone(unmapped.error())) return unmapped;
           for (const FrozenProcess& process : processes_)
             if (!process.threads.empty() && sys::is_our_tracee(process.threads.front().tid))
               return unmapped;
           return {};
         });
}

Result<void> FrozenTree::thaw(std::vector<sys::InterruptedSleep>* sleeps) {
  if (held_ && !complete_) seize_rest();
  bool undone = take_back_arenas();
  if (sleeps != nullptr) *sleeps = interrupted_sleeps();
  if (undone) keep_timeouts();  // Not of a thread that is still in a batch.
  // The leaders last: one isn't seen to end before all other threads have been.
  std::stable_partition(seized_.begin(), seized_.end(), [&](pid_t tid) {
    return std::none_of(processes_.begin(), processes_.end(),
                        [&](const FrozenProcess& process) { return process.pid == tid; });
  });
  undone = let_go_of_all().ok() && undone;
  processes_.clear();
  if (undone) return {};
  LOG(error, "{} can't be let go; this process ends, for recover() to do it", tree_.freezer_path);
  std::abort();
}

// Who waits in vfork(2) can stop, to be let go of, only once its child goes on. Should it still
// wait by then, its stop is left asked for: it has no call that we could have interrupted, and the
// end of this process lets go of it too.
Result<void> FrozenTree::let_go_of_all() {
  bool undone = true;
  std::vector<pid_t> waiting;
  for (pid_t tid : std::exchange(seized_, {})) {
    if (!complete_ && waits_in_vfork(tid))
      waiting.push_back(tid);
    else
      undone = insist([&] { return let_go(tid); }) && undone;
  }
  undone = insist([&] { return unhold(); }) && undone;
  for (const std::int64_t began = monotonic_us(); !waiting.empty();) {
    std::erase_if(waiting, [&](pid_t tid) {
      if (waits_in_vfork(tid)) return false;
      undone = insist([&] { return let_go(tid); }) && undone;
      return true;
    });
    if (monotonic_us() - began > vfork_let_go_us) break;
    if (!waiting.empty()) ::nanosleep(&vfork_pause, nullptr);
  }
  if (!undone) return make_error(Errc::internal, "not all threads were let go of");
  return {};
}

// A freezer that was put on has kicked every thread out of its system call; also those that we
// didn't come to. Nothing else can be done about one that a debugger traces.
void FrozenTree::seize_rest() {
  for (int round = 0; round < list_rounds_max; ++round) {
    bool any = false;
    insist([&]() -> Result<void> {
      for (pid_t tid : TRY(list_tree_threads(tree_))) {
        if (std::find(seized_.begin(), seized_.end(), tid) != seized_.end()) continue;
        const bool seized = insist([&]() -> Result<void> {
          TRY(seize_one(tid, 0));
          return {};
        });
        any = any || seized;
      }
      return {};
    });
    if (!any) return;
  }
}

Result<void> FrozenTree::stop_all(const FreezeHints& hints) {
  std::vector<Known> known = TRY(look_before(hints));
  std::optional<SleepClock> clock;
  if (hints.measure_sleeps) clock = SleepClock::calibrate();
  for (Known& k : known)
    if (k.sleep) clock->date(*k.sleep);
  if (hints.stopping) hints.stopping();
  frozen_at_ns_ = monotonic_ns();
  if (tree_.freezer_v2) TRY(hold());
  if (clock && all_frozen())
    for (Known& k : known)
      if (k.sleep) clock->confirm(*k.sleep, frozen_at_ns_);
  TRY(seize_all(known));
  for (FrozenProcess& process : processes_) {
    process.pidfd = TRY(sys::open_pidfd(process.pid));
    std::sort(
        process.threads.begin() + 1, process.threads.end(),
        [](const FrozenThread& a, const FrozenThread& b) { return a.tid_inside < b.tid_inside; });
  }
  // From here every context is one that the kernel continues rightly without us.
  TRY(unhold());
  TRY(settle_orphans());
  if (hints.leave_vdso) TRY(leave_vdso());
  return {};
}

Result<FrozenTree> freeze(const TreeRef& ref, const FreezeHints& hints) {
  for (const std::int64_t began = monotonic_us();;) {
    FrozenTree tree(ref);
    Result<void> stopped = tree.stop_all(hints);
    if (stopped.ok()) return tree;
    if (!tree.vforking_ || monotonic_us() - began > vfork_limit_us)
      return std::move(stopped).error();
    TRY(tree.thaw());
    ::nanosleep(&vfork_pause, nullptr);
  }
}

Result<void> recover(const TreeRef& ref) {
  // Tasks in a v1 freezer can't answer.
  if (!ref.freezer_v2) TRY(write_file(freeze_file(ref), "THAWED"));
  FrozenTree tree = TRY(freeze(ref));
  // What dead tracers left behind.
  for (FrozenProcess& process : tree.processes()) {
    Result<sys::RemoteProcess*> remote = tree.remote(process);
    if (!remote.ok() && !is_gone(remote.error())) return std::move(remote).error();
  }
  return tree.thaw();
}

}  // namespace godwit::capture
