// Two batches a process: one with what the process has (handlers, timers, prctl), executed by its
// first thread, and one for each thread (alternate stack, thread-id address, ...). Everything else
// is asked from outside: ptrace, /proc, and the system calls that take a thread id.

#include "capture/describe_inside.h"

#include <fcntl.h>
#include <linux/ioprio.h>
#include <linux/membarrier.h>
#include <linux/prctl.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <set>

#include "base/io.h"
#include "capture/restart.h"
#include "sys/thread_attr.h"

namespace godwit::capture {
namespace {

// Newer than the headers of Debian 12.
constexpr int prctl_get_mdwe = 66;
constexpr int prctl_get_memory_merge = 68;
constexpr int membarrier_get_registrations = 1 << 9;
constexpr int arch_get_cpuid = 0x1011;
constexpr int arch_get_xcomp_perm = 0x1022;
constexpr std::uint64_t xfeature_xtile_data = 1ULL << 18;
constexpr int last_signal = 64;
constexpr std::ptrdiff_t rotated_max = 64;         // Signals of one number in a queue.
constexpr int speculation_kinds = 3;               // Store bypass, indirect branch, L1D flush.
constexpr std::size_t mempolicy_mask_bytes = 128;  // 1024 nodes.

struct ExpeditedBarrier {
  int command;
  std::uint32_t registration;
};
constexpr std::array<ExpeditedBarrier, 3> expedited{{
    {MEMBARRIER_CMD_PRIVATE_EXPEDITED, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED},
    {MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE,
     MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE},
    {MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ},
}};

struct KernelSigaction {
  std::uint64_t handler, flags, restorer, mask;
};

struct TimerLine {
  int id = 0, signal = 0, notify = 0, clock = 0;
  pid_t thread = 0;  // SIGEV_THREAD_ID: as the reader sees it.
  std::uint64_t value = 0;
};

// /proc/PID/timers: "ID: 1\nsignal: 14/0000000000000000\nnotify: signal/pid.123\nClockID: 1\n".
std::vector<TimerLine> parse_timers(const std::string& text) {
  std::vector<TimerLine> timers;
  std::size_t at = 0;
  while (at < text.size()) {
    std::size_t end = text.find('\n', at);
    if (end == std::string::npos) end = text.size();
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (std::sscanf(line.c_str(), "ID: %d", &timers.emplace_back().id) == 1) continue;
    timers.pop_back();
    if (timers.empty()) continue;
    TimerLine& timer = timers.back();
    unsigned long long value = 0;
    char how[16] = {}, whom[8] = {};
    int id = 0;
    if (std::sscanf(line.c_str(), "signal: %d/%llx", &timer.signal, &value) == 2)
      timer.value = value;
    if (std::sscanf(line.c_str(), "notify: %15[^/]/%7[^.].%d", how, whom, &id) == 3) {
      timer.notify = std::strcmp(how, "none") == 0     ? SIGEV_NONE
                     : std::strcmp(how, "thread") == 0 ? SIGEV_THREAD
                                                       : SIGEV_SIGNAL;
      if (std::strcmp(whom, "tid") == 0) {
        timer.notify |= SIGEV_THREAD_ID;
        timer.thread = id;
      }
    }
    std::sscanf(line.c_str(), "ClockID: %d", &timer.clock);
  }
  return timers;
}

std::string siginfo_bytes(const siginfo_t& info) {
  static_assert(sizeof(siginfo_t) == 128);
  return std::string(reinterpret_cast<const char*>(&info), sizeof info);
}

// What the process has; asked by its first thread.
class ProcessQuestions {
 public:
  ProcessQuestions(sys::RemoteBatch& batch, std::vector<TimerLine> timers)
      : batch_(batch), timers_(std::move(timers)) {
    for (int signal = 1; signal <= last_signal; ++signal) {
      actions_[signal] = batch_.space(sizeof(KernelSigaction));
      action_results_[signal] = batch_.call(SYS_rt_sigaction, signal, 0, actions_[signal], 8);
    }
    for (int which = 0; which < 3; ++which) {
      itimers_[which] = batch_.space(sizeof(itimerval));
      batch_.call(SYS_getitimer, which, itimers_[which]);
    }
    for (const TimerLine& timer : timers_) {
      timer_values_.push_back(batch_.space(sizeof(itimerspec)));
      timer_results_.push_back(batch_.call(SYS_timer_gettime, timer.id, timer_values_.back()));
      overruns_.push_back(batch_.call(SYS_timer_getoverrun, timer.id));
    }
    brk_ = batch_.call(SYS_brk, 0);
    dumpable_ = batch_.call(SYS_prctl, PR_GET_DUMPABLE, 0, 0, 0, 0);
    thp_disable_ = batch_.call(SYS_prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0);
    mdwe_ = batch_.call(SYS_prctl, prctl_get_mdwe, 0, 0, 0, 0);
    memory_merge_ = batch_.call(SYS_prctl, prctl_get_memory_merge, 0, 0, 0, 0);
    subreaper_ = batch_.space(sizeof(int));
    batch_.call(SYS_prctl, PR_GET_CHILD_SUBREAPER, subreaper_, 0, 0, 0);
    ask_membarrier();
    xcomp_ = batch_.space(sizeof(std::uint64_t));
    batch_.call(SYS_arch_prctl, arch_get_xcomp_perm, xcomp_);
    ldt_ = batch_.space(64);
    ldt_result_ = batch_.call(SYS_modify_ldt, 0, ldt_, 64);
  }

  Result<void> answer(image::Process& out) const {
    for (int signal = 1; signal <= last_signal; ++signal) {
      if (batch_.result(action_results_[signal]) < 0)
        return make_error(Errc::os, "rt_sigaction({}): {}", signal,
                          batch_.result(action_results_[signal]));
      auto action = batch_.get<KernelSigaction>(actions_[signal]);
      if (action.handler == 0 && action.flags == 0) continue;
      image::SigAction& a = *out.add_sigactions();
      a.set_signal(signal), a.set_handler(action.handler), a.set_flags(action.flags);
      a.set_restorer(action.restorer), a.set_mask(action.mask);
    }
    auto us = [](const timeval& t) { return t.tv_sec * 1'000'000LL + t.tv_usec; };
    for (int which = 0; which < 3; ++which) {
      auto timer = batch_.get<itimerval>(itimers_[which]);
      // A periodic ITIMER_REAL shows no time left until its signal is taken, which starts it again.
      if (us(timer.it_value) == 0 && us(timer.it_interval) == 0) continue;
      image::IntervalTimer& t = *out.add_itimers();
      t.set_which(which), t.set_value_us(us(timer.it_value)),
          t.set_interval_us(us(timer.it_interval));
    }
    TRY(answer_timers(out));
    out.mutable_mm()->set_brk(static_cast<std::uint64_t>(batch_.result(brk_)));
    out.set_dumpable(value(dumpable_));
    out.set_thp_disable(value(thp_disable_) != 0);
    out.set_mdwe(value(mdwe_));
    out.set_memory_merge(value(memory_merge_) != 0);
    out.set_child_subreaper(batch_.get<int>(subreaper_) != 0);
    out.set_membarrier(membarrier_registrations());
    if (batch_.get<std::uint64_t>(xcomp_) & xfeature_xtile_data)
      return make_error(Errc::refused, "process {} has permission to use AMX, which can't move yet",
                        out.pid());
    if (batch_.result(ldt_result_) > 0)
      return make_error(Errc::refused, "process {} has a local descriptor table, which can't move",
                        out.pid());
    return {};
  }

 private:
  // 0 where this kernel doesn't know the question: then the feature isn't in use either.
  std::uint32_t value(std::size_t call) const {
    std::int64_t r = batch_.result(call);
    return r < 0 ? 0 : static_cast<std::uint32_t>(r);
  }
  // The question is younger (6.3) than what it asks for. Before, an expedited barrier tells: it is
  // refused to who hasn't registered for it, and harmless otherwise.
  void ask_membarrier() {
    membarrier_ = batch_.call(SYS_membarrier, membarrier_get_registrations, 0, 0);
    static const bool answered = ::syscall(SYS_membarrier, membarrier_get_registrations, 0, 0) >= 0;
    if (answered) return;
    for (std::size_t i = 0; i < expedited.size(); ++i)
      barriers_[i] = batch_.call(SYS_membarrier, expedited[i].command, 0, 0);
  }
  std::uint32_t membarrier_registrations() const {
    if (batch_.result(membarrier_) >= 0) return value(membarrier_);
    // Nothing tells who receives global barriers; to receive them in vain costs next to nothing.
    std::uint32_t registered = 0;
    if (batch_.result(membarrier_) == -ENOSYS) return 0;
    for (std::size_t i = 0; i < expedited.size(); ++i)
      if (batch_.result(barriers_[i]) == 0) registered |= expedited[i].registration;
    return registered | MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;
  }
  Result<void> answer_timers(image::Process& out) const {
    auto ns = [](const timespec& t) { return t.tv_sec * 1'000'000'000LL + t.tv_nsec; };
    for (std::size_t i = 0; i < timers_.size(); ++i) {
      if (batch_.result(timer_results_[i]) < 0)
        return make_error(Errc::os, "timer_gettime({}): {}", timers_[i].id,
                          batch_.result(timer_results_[i]));
      auto spec = batch_.get<itimerspec>(timer_values_[i]);
      image::PosixTimer& t = *out.add_posix_timers();
      t.set_id(timers_[i].id), t.set_clock(timers_[i].clock), t.set_notify(timers_[i].notify);
      t.set_signal(timers_[i].signal), t.set_value(timers_[i].value);
      if (timers_[i].thread != 0)
        t.set_thread_id(TRY(sys::read_status(timers_[i].thread)).ns_pid.back());
      t.set_value_ns(ns(spec.it_value)), t.set_interval_ns(ns(spec.it_interval));
      t.set_overrun(static_cast<std::int32_t>(batch_.result(overruns_[i])));
    }
    return {};
  }

  sys::RemoteBatch& batch_;
  std::vector<TimerLine> timers_;
  RemoteAddr actions_[last_signal + 1], itimers_[3], subreaper_, xcomp_, ldt_;
  std::size_t action_results_[last_signal + 1], brk_, dumpable_, thp_disable_, mdwe_, memory_merge_,
      membarrier_, barriers_[expedited.size()], ldt_result_;
  std::vector<RemoteAddr> timer_values_;
  std::vector<std::size_t> timer_results_, overruns_;
};

// What each thread has.
class ThreadQuestions {
 public:
  explicit ThreadQuestions(sys::RemoteBatch& batch) : batch_(batch) {
    auto into = [&](std::size_t bytes, long option) {
      RemoteAddr at = batch_.space(bytes);
      batch_.call(SYS_prctl, option, at, 0, 0, 0);
      return at;
    };
    altstack_ = batch_.space(sizeof(stack_t));
    altstack_result_ = batch_.call(SYS_sigaltstack, 0, altstack_);
    clear_tid_ = into(8, PR_GET_TID_ADDRESS);
    pdeath_ = into(4, PR_GET_PDEATHSIG);
    name_ = into(16, PR_GET_NAME);
    tsc_ = into(4, PR_GET_TSC);
    slack_ = batch_.call(SYS_prctl, PR_GET_TIMERSLACK, 0, 0, 0, 0);
    securebits_ = batch_.call(SYS_prctl, PR_GET_SECUREBITS, 0, 0, 0, 0);
    keep_caps_ = batch_.call(SYS_prctl, PR_GET_KEEPCAPS, 0, 0, 0, 0);
    mce_ = batch_.call(SYS_prctl, PR_MCE_KILL_GET, 0, 0, 0, 0);
    io_flusher_ = batch_.call(SYS_prctl, PR_GET_IO_FLUSHER, 0, 0, 0, 0);
    for (int i = 0; i < speculation_kinds; ++i)
      speculation_[i] = batch_.call(SYS_prctl, PR_GET_SPECULATION_CTRL, i, 0, 0, 0);
    cpuid_ = batch_.call(SYS_arch_prctl, arch_get_cpuid, 0);
    personality_ = batch_.call(SYS_personality, 0xffffffffL);
    policy_ = batch_.space(4);
    nodes_ = batch_.space(mempolicy_mask_bytes);
    policy_result_ =
        batch_.call(SYS_get_mempolicy, policy_, nodes_, mempolicy_mask_bytes * 8, 0, 0);
  }

  Result<void> answer(image::Thread& out) const {
    if (batch_.result(altstack_result_) < 0)
      return make_error(Errc::os, "sigaltstack: {}", batch_.result(altstack_result_));
    auto stack = batch_.get<stack_t>(altstack_);
    out.set_altstack_sp(reinterpret_cast<std::uint64_t>(stack.ss_sp));
    out.set_altstack_size(stack.ss_size);
    // SS_ONSTACK only says where the stack pointer is; it can't be set.
    out.set_altstack_flags(static_cast<std::uint32_t>(stack.ss_flags) &
                           ~static_cast<std::uint32_t>(SS_ONSTACK));
    out.set_clear_child_tid(batch_.get<std::uint64_t>(clear_tid_));
    out.set_pdeath_signal(batch_.get<int>(pdeath_));
    char name[17] = {};
    auto raw = batch_.get<std::array<char, 16>>(name_);
    std::memcpy(name, raw.data(), raw.size());
    out.set_comm(name);
    out.set_tsc_mode(batch_.get<std::uint32_t>(tsc_));
    out.set_timerslack_ns(static_cast<std::uint64_t>(batch_.result(slack_)));
    out.mutable_creds()->set_securebits(value(securebits_));
    out.mutable_creds()->set_keep_caps(value(keep_caps_) != 0);
    out.set_mce_kill_policy(value(mce_));
    out.set_io_flusher(value(io_flusher_) ==
                       1);  // EPERM without CAP_SYS_RESOURCE: it can't have set it.
    for (int i = 0; i < speculation_kinds; ++i) {
      if (batch_.result(speculation_[i]) < 0) continue;
      image::SpeculationCtrl& s = *out.add_speculation();
      s.set_which(static_cast<std::uint32_t>(i)), s.set_value(value(speculation_[i]));
    }
    out.set_personality(static_cast<std::uint64_t>(batch_.result(personality_)));
    out.set_cpuid_faulting(batch_.result(cpuid_) == 0);
    if (batch_.result(policy_result_) == 0 && batch_.get<std::uint32_t>(policy_) != 0) {
      auto mode = batch_.get<std::array<char, 4>>(policy_);
      auto nodes = batch_.get<std::array<char, mempolicy_mask_bytes>>(nodes_);
      out.set_mempolicy(std::string(mode.begin(), mode.end()) +
                        std::string(nodes.begin(), nodes.end()));
    }
    return {};
  }

 private:
  std::uint32_t value(std::size_t call) const {
    std::int64_t r = batch_.result(call);
    return r < 0 ? 0 : static_cast<std::uint32_t>(r);
  }
  sys::RemoteBatch& batch_;
  RemoteAddr altstack_, clear_tid_, pdeath_, name_, tsc_, policy_, nodes_;
  std::size_t altstack_result_, slack_, securebits_, keep_caps_, mce_, io_flusher_,
      speculation_[speculation_kinds], cpuid_, personality_, policy_result_;
};

// A fault whose signal is queued, but not delivered yet: the thread still stands on the
// instruction, and the program that executes it once more faults again, or doesn't, as it is right
// by then. Queued on the target, it would come before the SIGTRAP by which a batch ends there, also
// while it is blocked.
bool comes_again(const siginfo_t& info) {
  if (info.si_code <= 0) return false;  // Sent by somebody.
  switch (info.si_signo) {
    case SIGSEGV:
    case SIGFPE:
    case SIGILL:
      return true;
    case SIGBUS:
      return info.si_code != BUS_MCEERR_AO;
    default:
      return false;
  }
}

Result<void> from_ptrace(const FrozenThread& thread, image::Thread& out) {
  out.set_xstate(TRY(sys::ptrace_get_xstate(thread.tid)));
  out.set_signal_mask(TRY(sys::ptrace_get_sigmask(thread.tid)));
  sys::RseqConfig rseq = TRY(sys::ptrace_get_rseq(thread.tid));
  out.set_rseq_addr(rseq.address), out.set_rseq_size(rseq.size);
  out.set_rseq_signature(rseq.signature), out.set_rseq_flags(rseq.flags);
  if (TRY(sys::ptrace_syscall_dispatch(thread.tid)))
    return make_error(Errc::refused, "thread {} uses syscall user dispatch, which can't move yet",
                      thread.tid_inside);
  if (out.seccomp_mode() != 2) return {};
  for (unsigned i = 0;; ++i) {
    std::optional<sys::SeccompProgram> program = TRY(sys::ptrace_get_seccomp(thread.tid, i));
    if (!program) return {};
    image::SeccompFilter& filter = *out.add_seccomp_filters();
    filter.set_instructions(program->instructions.data(),
                            program->instructions.size() * sizeof(sock_filter));
    filter.set_flags(static_cast<std::uint32_t>(program->flags));
  }
}

// A periodic timer whose signal is still queued counts its expiries where nobody can look: they are
// told when the signal is taken out. So it is taken out and put back, by one batch, which the
// thread ends also if we die. What is put back is an ordinary entry of the queue that says the
// count.
Result<void> settle_overruns(const FrozenProcess& process, FrozenThread& thread, bool first,
                             sys::RemoteProcess& remote) {
  const std::vector<siginfo_t> own = TRY(sys::ptrace_peek_siginfo(thread.tid, false));
  const std::vector<siginfo_t> shared =
      first ? TRY(sys::ptrace_peek_siginfo(thread.tid, true)) : std::vector<siginfo_t>{};
  std::set<int> signals;
  for (const auto* queue : {&own, &shared})
    for (const siginfo_t& info : *queue)
      if (info.si_code == SI_TIMER) signals.insert(info.si_signo);
  auto count = [](const std::vector<siginfo_t>& queue, int signal) {
    return std::count_if(queue.begin(), queue.end(),
                         [&](const siginfo_t& info) { return info.si_signo == signal; });
  };
  for (int signal : signals) {
    sys::RemoteBatch batch(remote);
    const RemoteAddr set = batch.put_value(std::uint64_t{1} << (signal - 1)),
                     at_once = batch.put_value(timespec{0, 0});
    // The thread's own queue comes first; all are taken out before any is put back: in order.
    const auto of_thread = count(own, signal), all = of_thread + count(shared, signal);
    if (all > rotated_max) continue;  // The count is lost, not a signal.
    std::vector<RemoteAddr> taken;
    for (std::ptrdiff_t i = 0; i < all; ++i) {
      taken.push_back(batch.space(sizeof(siginfo_t)));
      batch.call(SYS_rt_sigtimedwait, set, taken.back(), at_once, 8);
    }
    for (std::ptrdiff_t i = 0; i < all; ++i) {
      const RemoteAddr info = taken[static_cast<std::size_t>(i)];
      if (i < of_thread)
        batch.call(SYS_rt_tgsigqueueinfo, process.pid_inside, thread.tid_inside, signal, info);
      else
        batch.call(SYS_rt_sigqueueinfo, process.pid_inside, signal, info);
    }
    TRY(remote.run(thread, batch));
  }
  return {};
}

// What the process's queue and each thread's hold, in the order of the threads.
struct Queues {
  std::vector<std::string> shared;
  std::vector<std::vector<std::string>> own;
  bool operator==(const Queues&) const = default;
};

Result<Queues> read_queues(const FrozenProcess& process) {
  Queues queues;
  for (const FrozenThread& thread : process.threads) {
    std::vector<std::string>& own = queues.own.emplace_back();
    for (const siginfo_t& info : TRY(sys::ptrace_peek_siginfo(thread.tid, false)))
      if (!comes_again(info)) own.push_back(siginfo_bytes(info));
  }
  for (const siginfo_t& info : TRY(sys::ptrace_peek_siginfo(process.threads.front().tid, true)))
    queues.shared.push_back(siginfo_bytes(info));
  return queues;
}

// Timers run on while the program is frozen. One that expires between the look at the queues and
// the look at the timers would be in neither, and so would one whose signal the thread has taken
// meanwhile, which shows in its registers: then both are looked at again. That ends, since what is
// queued once isn't queued a second time before the program takes it.
constexpr int looks_max = 16;

// A periodic timer of processor time that is due, but whose tick hasn't come, shows no time left;
// one that was never started shows the same. What setitimer(2) says of the old value differs: so it
// is set to nothing and back at once.
Result<void> settle_interval_timers(FrozenProcess& process, sys::RemoteProcess& remote,
                                    image::Process& out) {
  for (image::IntervalTimer& timer : *out.mutable_itimers()) {
    if (timer.which() == ITIMER_REAL || timer.value_us() != 0) continue;
    sys::RemoteBatch batch(remote);
    const itimerval none{{timer.interval_us() / 1'000'000, timer.interval_us() % 1'000'000}, {}};
    const RemoteAddr nothing = batch.put_value(none), old = batch.space(sizeof(itimerval));
    batch.call(SYS_setitimer, timer.which(), nothing, old);
    batch.call(SYS_setitimer, timer.which(), old, 0);
    TRY(remote.run(process.threads.front(), batch));
    const auto was = batch.get<itimerval>(old).it_value;
    if (was.tv_sec != 0 || was.tv_usec != 0) timer.set_value_us(1);
  }
  return {};
}

// What the whole process has, and what waits for it.
Result<void> describe_process(FrozenProcess& process, sys::RemoteProcess& remote,
                              image::Process& out) {
  const std::vector<TimerLine> timers =
      parse_timers(TRY(read_file(sys::proc_path(process.pid, "timers"))));
  if (!timers.empty()) {
    for (FrozenThread& thread : process.threads)
      TRY(settle_overruns(process, thread, &thread == &process.threads.front(), remote));
  }
  Queues queues = TRY(read_queues(process));
  for (int look = 1;; ++look) {
    sys::RemoteBatch batch(remote);
    ProcessQuestions questions(batch, timers);
    FrozenThread& first = process.threads.front();
    const sys::Regs before = first.regs;
    TRY(remote.run(first, batch));
    Queues now = TRY(read_queues(process));
    const bool same = now == queues && std::memcmp(&before, &first.regs, sizeof before) == 0;
    queues = std::move(now);
    if (!same && look < looks_max) continue;
    TRY(questions.answer(out));
    break;
  }
  TRY(settle_interval_timers(process, remote, out));
  for (std::string& info : queues.shared) out.add_pending(std::move(info));
  for (std::size_t i = 0; i < queues.own.size(); ++i)
    for (std::string& info : queues.own[i])
      out.mutable_threads(static_cast<int>(i))->add_pending(std::move(info));
  return {};
}

Result<void> from_system_calls(const FrozenThread& thread, image::Thread& out) {
  sys::ThreadAttr attr = TRY(sys::read_thread_attr(thread.tid));
  out.set_sched_policy(attr.policy), out.set_nice(attr.nice), out.set_rt_priority(attr.rt_priority);
  out.set_dl_runtime(attr.dl_runtime), out.set_dl_deadline(attr.dl_deadline),
      out.set_dl_period(attr.dl_period);
  out.set_sched_flags(attr.flags);
  for (std::uint32_t cpu : attr.affinity) out.add_affinity(cpu);
  out.set_ioprio(attr.ioprio);
  out.set_robust_list(attr.robust_list), out.set_robust_list_len(attr.robust_list_len);
  return {};
}

}  // namespace

Result<void> describe_inside(FrozenTree& tree, FrozenProcess& process, image::Process& out) {
  sys::RemoteProcess* remote = TRY(tree.remote(process));
  FrozenThread& first = process.threads.front();
  if (first.tid != process.pid)
    return make_error(Errc::refused,
                      "the main thread of process {} has ended, which can't move yet",
                      process.pid_inside);
  INVARIANT(out.threads_size() == static_cast<int>(process.threads.size()));
  for (int i = 0; i < out.threads_size(); ++i) {
    const FrozenThread& thread = process.threads[static_cast<std::size_t>(i)];
    if (thread.stop_signal != 0) out.set_stop_signal(thread.stop_signal);
    TRY(from_ptrace(thread, *out.mutable_threads(i))
            .with(fmt::format("thread {}", thread.tid_inside)));
    TRY(from_system_calls(thread, *out.mutable_threads(i))
            .with(fmt::format("thread {}", thread.tid_inside)));
  }

  TRY(remote->map_arena(first));
  TRY(describe_process(process, *remote, out));
  for (int i = 0; i < out.threads_size(); ++i) {
    FrozenThread& thread = process.threads[static_cast<std::size_t>(i)];
    sys::RemoteBatch batch(*remote);
    ThreadQuestions questions(batch);
    TRY(remote->run(thread, batch));
    TRY(questions.answer(*out.mutable_threads(i)));
  }
  // MCL_FUTURE shows in what is mapped now: the arena.
  const std::uint64_t arena = remote->arena().value;
  bool locked_memory = false;
  for (const image::Vma& vma : out.mm().vmas())
    locked_memory |= (vma.flags() & image::VMA_LOCKED) != 0;
  if (locked_memory) {
    for (const sys::SmapsEntry& entry : TRY(sys::read_smaps(process.pid)))
      if (entry.map.start == arena && entry.has("lo"))
        out.set_mlock_future(entry.has("lf") ? 2 | 4 : 2);
  }
  TRY(remote->unmap_arena(first));
  // Last, since an injected call may have let a signal through.
  for (int i = 0; i < out.threads_size(); ++i) {
    FrozenThread& thread = process.threads[static_cast<std::size_t>(i)];
    sys::Regs regs = TRY(
        describe_restart(process, thread, *remote, tree.frozen_at_ns(), *out.mutable_threads(i)));
    out.mutable_threads(i)->set_regs(&regs, sizeof regs);
  }
  return {};
}

Result<std::vector<OwnLook>> look_at_fds(FrozenTree& tree, FrozenProcess& process,
                                         std::span<const int> fds) {
  sys::RemoteProcess* remote = TRY(tree.remote(process));
  TRY(remote->map_arena(process.threads.front()));
  std::vector<OwnLook> looks;
  looks.reserve(fds.size());
  while (looks.size() < fds.size()) {
    sys::RemoteBatch batch(*remote);
    std::vector<std::pair<std::size_t, RemoteAddr>> asked;
    for (std::size_t i = looks.size(); i < fds.size() && batch.has_room(2, sizeof(struct stat));
         ++i) {
      const RemoteAddr st = batch.space(sizeof(struct stat));
      asked.emplace_back(batch.call(SYS_fcntl, fds[i], F_GETFD), st);
      batch.call(SYS_fstat, fds[i], st);
    }
    TRY(remote->run(process.threads.front(), batch));
    for (const auto& [first, st] : asked) {
      const std::int64_t flags = batch.result(first), told = batch.result(first + 1);
      if (flags < 0 || told < 0)
        return os_error(
            fmt::format("fstat({}) in process {}", fds[looks.size()], process.pid_inside),
            static_cast<int>(-std::min(flags, told)));
      looks.push_back({(flags & FD_CLOEXEC) != 0, batch.get<struct stat>(st)});
    }
  }
  return looks;
}

Result<bool> is_stop_waited_for(FrozenTree& tree, pid_t parent, pid_t stopped) {
  Result<FrozenProcess*> found = tree.find(parent);
  if (!found.ok()) return true;
  FrozenProcess& process = **found;
  sys::RemoteProcess* remote = TRY(tree.remote(process));
  TRY(remote->map_arena(process.threads.front()));
  sys::RemoteBatch batch(*remote);
  const RemoteAddr info = batch.space(sizeof(siginfo_t));
  const std::size_t asked =
      batch.call(SYS_waitid, P_PID, stopped, info, WSTOPPED | WNOHANG | WNOWAIT | __WALL, 0);
  TRY(remote->run(process.threads.front(), batch));
  TRY(remote->unmap_arena(process.threads.front()));
  if (batch.result(asked) < 0)
    return make_error(Errc::os, "waitid({}): {}", stopped, batch.result(asked));
  return batch.get<siginfo_t>(info).si_pid != stopped;
}

}  // namespace godwit::capture
