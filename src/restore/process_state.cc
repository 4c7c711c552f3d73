#include "restore/process_state.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/prctl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/io.h"

namespace godwit::restore {
namespace {

// Newer than Debian 12's headers.
constexpr std::uint64_t pr_set_mdwe = 65;
constexpr std::uint64_t pr_set_memory_merge = 67;
constexpr std::uint64_t pr_timer_create_restore_ids = 77;  // From 6.16.
constexpr int timer_ids_walked_max =
    100'000;  // Without it: created and deleted up to the id wanted.
constexpr int signals = 64;

std::uint64_t u(std::int64_t n) { return static_cast<std::uint64_t>(n); }

struct KernelSigaction {
  std::uint64_t handler, flags, restorer, mask;
};

bool ignores_sigtrap(const image::Process& process) {
  return std::any_of(process.sigactions().begin(), process.sigactions().end(), [](const auto& a) {
    return a.signal() == SIGTRAP && a.handler() == reinterpret_cast<std::uint64_t>(SIG_IGN);
  });
}

KernelSigaction action_of(const image::Process& process, int signal) {
  for (const image::SigAction& a : process.sigactions()) {
    if (a.signal() == signal) return {a.handler(), a.flags(), a.restorer(), a.mask()};
  }
  return {};
}

void add_handlers(Batch& b, const image::Process& process) {
  for (int signal = 1; signal <= signals; ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP) continue;
    if (signal == SIGTRAP && ignores_sigtrap(process)) continue;
    b.call(SYS_rt_sigaction, "rt_sigaction",
           {u(signal), b.put_value(action_of(process, signal)), 0, 8});
  }
}

Result<void> restore_mm(Skeleton& skeleton, const image::Process& process, const OpenFiles& files) {
  const image::Mm& mm = process.mm();
  const image::FileRef* exe = nullptr;
  for (const image::FileRef& f : mm.mapped()) {
    if (f.id() == mm.exe_file()) exe = &f;
  }
  if (exe == nullptr) return make_error(Errc::invalid, "the image doesn't name the executable");
  UniqueFd fd = TRY(files.open_ref(*exe, O_RDONLY).with("executable"));
  int ours[] = {fd.get()};
  std::vector<int> there = TRY(skeleton.pass_fds(ours));
  Batch b = skeleton.batch();
  b.about("memory layout");
  prctl_mm_map map{};
  map.start_code = mm.start_code(), map.end_code = mm.end_code();
  map.start_data = mm.start_data(), map.end_data = mm.end_data();
  map.start_brk = mm.start_brk(), map.brk = mm.brk(), map.start_stack = mm.start_stack();
  map.arg_start = mm.arg_start(), map.arg_end = mm.arg_end();
  map.env_start = mm.env_start(), map.env_end = mm.env_end();
  map.auxv = reinterpret_cast<__u64*>(b.put(std::as_bytes(std::span(mm.auxv()))));
  map.auxv_size = static_cast<__u32>(mm.auxv().size());
  map.exe_fd = static_cast<__u32>(there[0]);
  b.call(SYS_prctl, "prctl(PR_SET_MM_MAP)",
         {PR_SET_MM, PR_SET_MM_MAP, b.put_value(map), sizeof map});
  b.call(SYS_close, "close", {u(there[0])});
  return skeleton.run(b);
}

void add_directories(Batch& b, const image::Process& process) {
  b.about("working directory " + process.cwd());
  // chroot first: chdir afterwards goes by the image's path, which is relative to it.
  if (!process.root().empty() && process.root() != "/") {
    b.call(SYS_chroot, "chroot", {b.put_string(process.root())});
  }
  std::uint64_t cwd = b.put_string(process.cwd());
  if (process.cwd_deleted()) {
    const image::FileOwner& owner = process.cwd_owner();
    b.call(SYS_mkdir, "mkdir", {cwd, 0700});
    b.call(SYS_chown, "chown", {cwd, owner.uid(), owner.gid()});
    b.call(SYS_chmod, "chmod", {cwd, owner.mode()});
  }
  b.call(SYS_chdir, "chdir", {cwd});
  if (process.cwd_deleted()) b.call(SYS_rmdir, "rmdir", {cwd});
  b.about({});
  b.call(SYS_umask, "umask", {process.umask()});
}

// Time left, less what has passed since it was read; a timer that is late fires at once.
std::int64_t left_ns(std::int64_t value_ns, std::int64_t frozen_ns, bool cpu_time) {
  if (value_ns == 0 || cpu_time) return value_ns;
  return std::max<std::int64_t>(1, value_ns - frozen_ns);
}

bool waits(const image::Process& process, int signal) {
  return std::ranges::any_of(process.pending(), [signal](const std::string& pending) {
    siginfo_t info;
    std::memcpy(&info, pending.data(), sizeof info);
    return info.si_signo == signal;
  });
}

void add_interval_timers(Batch& b, const image::Process& process, std::int64_t frozen_ns) {
  for (const image::IntervalTimer& t : process.itimers()) {
    std::int64_t value_us = t.value_us();
    // An expired one starts again when its signal is taken. Here it expires once more; a second
    // SIGALRM isn't queued beside the first. One whose SIGALRM was ignored stands still.
    if (t.which() == ITIMER_REAL && value_us == 0 && !waits(process, SIGALRM)) continue;
    if (t.which() == ITIMER_REAL) value_us = std::max<std::int64_t>(1, value_us - frozen_ns / 1000);
    itimerval value{{t.interval_us() / 1'000'000, t.interval_us() % 1'000'000},
                    {value_us / 1'000'000, value_us % 1'000'000}};
    b.call(SYS_setitimer, "setitimer", {u(t.which()), b.put_value(value), 0});
  }
}

// The kernel's struct sigevent.
struct KernelSigevent {
  std::uint64_t value;
  std::int32_t signal, notify, tid;
  std::int32_t pad[11];
};
static_assert(sizeof(KernelSigevent) == 64);

void add_timer_create(Batch& b, const image::PosixTimer& t, std::uint64_t id_at) {
  KernelSigevent event{t.value(), t.signal(), t.notify(), t.thread_id(), {}};
  b.call(SYS_timer_create, "timer_create", {u(t.clock()), b.put_value(event), id_at});
}

// Timers get the ids that the program knows. The kernel either takes the id wanted, or counts up:
// then timers in between are created and deleted again.
Result<void> create_timers(Skeleton& skeleton,
                           const std::vector<const image::PosixTimer*>& timers) {
  Batch b = skeleton.batch();
  std::size_t asked = b.call_tolerant(SYS_prctl, "prctl(PR_TIMER_CREATE_RESTORE_IDS)",
                                      {pr_timer_create_restore_ids, 1, 0, 0, 0});
  TRY(skeleton.run(b));
  bool exact = b.result(asked) == 0;
  int next = 0;
  auto flush = [&]() -> Result<void> {
    TRY(skeleton.run(b));
    b.clear();
    return {};
  };
  b.clear();
  std::vector<std::uint64_t> ids;
  for (const image::PosixTimer* t : timers) {
    if (t->id() > timer_ids_walked_max && !exact) {
      return make_error(Errc::unsupported, "POSIX timer with id {} on this kernel", t->id());
    }
    for (; !exact && next < t->id(); ++next) {
      if (!b.has_room(4, 512)) TRY(flush());
      std::uint64_t id_at = b.reserve(4);
      add_timer_create(b, *t, id_at);
      b.call(SYS_timer_delete, "timer_delete", {u(next)});
    }
    if (!b.has_room(4, 512)) TRY(flush());
    b.about(fmt::format("POSIX timer {}", t->id()));
    std::uint64_t id_at = b.put_value<std::int32_t>(t->id());
    add_timer_create(b, *t, id_at);
    TRY(flush());
    // clear() kept the bytes.
    if (b.value_at<std::int32_t>(id_at) != t->id()) {
      return make_error(Errc::unsupported, "POSIX timer {} came out as {}", t->id(),
                        b.value_at<std::int32_t>(id_at));
    }
    next = t->id() + 1;
  }
  if (exact) {
    b.call(SYS_prctl, "prctl(PR_TIMER_CREATE_RESTORE_IDS)",
           {pr_timer_create_restore_ids, 0, 0, 0, 0});
  }
  return skeleton.run(b);
}

// How often a timer has expired without the program having been told, by the signals in its queues.
std::int64_t untold_expiries(const image::Process& process, const image::PosixTimer& timer) {
  std::int64_t count = 0;
  auto look = [&](const std::string& pending) {
    if (timer_behind(process, pending) != &timer) return;
    siginfo_t info;
    std::memcpy(&info, pending.data(), sizeof info);
    count += 1 + std::max(0, info.si_overrun);
  };
  for (const std::string& info : process.pending()) look(info);
  for (const image::Thread& t : process.threads())
    for (const std::string& info : t.pending()) look(info);
  return count;
}

// When the first of these expiries was, by the timer's clock as the program sees it.
std::int64_t first_untold_ns(const image::PosixTimer& t, const image::Clocks& clocks,
                             std::int64_t frozen_ns, std::int64_t count) {
  // This node's time of day; the other clocks go on from the image's.
  const std::int64_t frozen_at = t.clock() == CLOCK_REALTIME   ? realtime_ns() - frozen_ns
                                 : t.clock() == CLOCK_BOOTTIME ? clocks.boottime_ns()
                                                               : clocks.monotonic_ns();
  return std::max<std::int64_t>(1, frozen_at + t.value_ns() - count * t.interval_ns());
}

Result<void> restore_posix_timers(Skeleton& skeleton, const image::Process& process,
                                  const image::Clocks& clocks, std::int64_t frozen_ns,
                                  Notes& notes) {
  if (process.posix_timers_size() == 0) return {};
  std::vector<const image::PosixTimer*> timers;
  for (const image::PosixTimer& t : process.posix_timers()) timers.push_back(&t);
  std::sort(timers.begin(), timers.end(), [](auto* a, auto* b) { return a->id() < b->id(); });
  TRY(create_timers(skeleton, timers));
  Batch b = skeleton.batch();
  for (const image::PosixTimer* t : timers) {
    if (!b.has_room(2, 128)) {
      TRY(skeleton.run(b));
      b.clear();
    }
    if (t->overrun() != 0) {
      notes.push_back(
          fmt::format("POSIX timer {}: an overrun count of {} is lost", t->id(), t->overrun()));
    }
    bool cpu_time = t->clock() < 0 || t->clock() == CLOCK_PROCESS_CPUTIME_ID ||
                    t->clock() == CLOCK_THREAD_CPUTIME_ID;
    std::int64_t value_ns = left_ns(t->value_ns(), frozen_ns, cpu_time);
    const std::int64_t untold = untold_expiries(process, *t);
    if (untold > 0) value_ns = first_untold_ns(*t, clocks, frozen_ns, untold);
    itimerspec spec{{t->interval_ns() / second_ns, t->interval_ns() % second_ns},
                    {value_ns / second_ns, value_ns % second_ns}};
    b.about(fmt::format("POSIX timer {}", t->id()));
    const std::uint64_t how = untold > 0 ? std::uint64_t{TIMER_ABSTIME} : 0;
    b.call(SYS_timer_settime, "timer_settime", {u(t->id()), how, b.put_value(spec), 0});
  }
  return skeleton.run(b);
}

void note_write(const std::string& path, std::string_view text, const char* what, Notes& notes) {
  auto written = write_file(path, text);
  if (!written) notes.push_back(fmt::format("{}: {}", what, written.error().what()));
}

}  // namespace

Result<void> register_membarrier(Skeleton& skeleton, std::uint32_t want, std::uint32_t& done) {
  if ((want & ~done) == 0) return {};
  Batch b = skeleton.batch();
  for (std::uint32_t bit = 0; bit < 32; ++bit) {
    if (((want & ~done) >> bit & 1) != 0) b.call(SYS_membarrier, "membarrier", {1u << bit, 0, 0});
  }
  TRY(skeleton.run(b));
  done |= want;
  return {};
}

Result<void> restore_process(Skeleton& skeleton, const image::Process& process,
                             const image::Clocks& clocks, const OpenFiles& files,
                             std::int64_t frozen_ns, Notes& notes) {
  TRY(restore_mm(skeleton, process, files));
  Batch b = skeleton.batch();
  // Before anything can send a signal: to ignore one drops it wherever it is queued, also where it
  // is blocked, and a timer whose signal was dropped never expires again.
  add_handlers(b, process);
  TRY(skeleton.run(b));
  b.clear();
  TRY(restore_posix_timers(skeleton, process, clocks, frozen_ns, notes));
  add_directories(b, process);
  add_interval_timers(b, process, frozen_ns);
  if (process.thp_disable())
    b.call(SYS_prctl, "prctl(PR_SET_THP_DISABLE)", {PR_SET_THP_DISABLE, 1, 0, 0, 0});
  if (process.memory_merge())
    b.call(SYS_prctl, "prctl(PR_SET_MEMORY_MERGE)", {pr_set_memory_merge, 1, 0, 0, 0});
  if (process.child_subreaper())
    b.call(SYS_prctl, "prctl(PR_SET_CHILD_SUBREAPER)", {PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0});
  if (process.mlock_future() != 0) b.call(SYS_mlockall, "mlockall", {process.mlock_future()});
  for (int i = 0, n = seccomp_shared(process); i < n; ++i) {
    // For all threads at once, so that they share the filters as before and can go on to
    // synchronize.
    constexpr unsigned flag_tsync = 1;
    TRY(add_seccomp_filter(b, process.threads(0).seccomp_filters(i), flag_tsync));
    if (!b.has_room(256, 64 << 10)) {
      TRY(skeleton.run(b));
      b.clear();
    }
  }
  return skeleton.run(b);
}

void add_shared_pending(Batch& b, const image::Process& process) {
  for (const std::string& info : process.pending()) {
    if (timer_behind(process, info) != nullptr) continue;
    std::int32_t signal = 0;
    std::memcpy(&signal, info.data(), sizeof signal);
    b.call(SYS_rt_sigqueueinfo, "rt_sigqueueinfo",
           {u(process.pid()), u(signal), b.put(std::as_bytes(std::span(info)))});
  }
}

// In the skeleton itself: raising a limit of another user's process would take CAP_SYS_RESOURCE,
// which even root may lack. What the target can't give is as near as possible, and noted.
Result<void> add_limits(Batch& b, const Skeleton& skeleton, const image::Process& process,
                        std::uint64_t capabilities, Notes& notes) {
  constexpr std::uint64_t may_raise = 1ull << CAP_SYS_RESOURCE;
  for (const image::Rlimit& want : process.rlimits()) {
    rlimit now{};
    auto resource = static_cast<__rlimit_resource>(want.resource());
    if (prlimit(skeleton.node_pid(), resource, nullptr, &now) != 0) {
      return os_error(fmt::format("prlimit({}, {})", skeleton.node_pid(), want.resource()));
    }
    if (now.rlim_cur == want.soft() && now.rlim_max == want.hard()) continue;
    rlimit set{want.soft(), want.hard()};
    if (want.hard() > now.rlim_max && (capabilities & may_raise) == 0) {
      set.rlim_max = now.rlim_max;
      set.rlim_cur = std::min<rlim_t>(want.soft(), now.rlim_max);
      notes.push_back(fmt::format("resource limit {}: {} here, {} on the source", want.resource(),
                                  set.rlim_max, want.hard()));
    }
    b.about(fmt::format("resource limit {}", want.resource()));
    b.call(SYS_prlimit64, "prlimit64", {0, want.resource(), b.put_value(set), 0});
  }
  b.about({});
  return {};
}

void add_after_credentials(Batch& b, const image::Process& process, Notes& notes) {
  constexpr std::uint32_t dumpable_as_root = 2;  // Set by the kernel only.
  if (process.dumpable() == dumpable_as_root) notes.push_back("dumpable: 0 here, 2 on the source");
  b.call(SYS_prctl, "prctl(PR_SET_DUMPABLE)", {PR_SET_DUMPABLE, process.dumpable() == 1 ? 1u : 0u});
  if (process.mdwe() != 0)
    b.call(SYS_prctl, "prctl(PR_SET_MDWE)", {pr_set_mdwe, process.mdwe(), 0, 0, 0});
}

Result<void> ignore_sigtrap(Skeleton& skeleton, const image::Process& process) {
  if (!ignores_sigtrap(process)) return {};
  Batch b = skeleton.batch();  // Only for its memory.
  std::uint64_t action = b.put_value(action_of(process, SIGTRAP));
  TRY(skeleton.single(SYS_rt_sigaction, "rt_sigaction(SIGTRAP)", {SIGTRAP, action, 0, 8}));
  return {};
}

Result<void> write_proc_files(pid_t node_pid, const image::Process& process, Notes& notes) {
  std::string proc = fmt::format("/proc/{}/", node_pid);
  // Inherited from init, which may be better protected than a program should be.
  std::string oom = TRY(read_file(proc + "oom_score_adj"));
  if (std::atoi(oom.c_str()) != process.oom_score_adj()) {
    note_write(proc + "oom_score_adj", std::to_string(process.oom_score_adj()), "oom_score_adj",
               notes);
  }
  constexpr std::uint64_t coredump_default = 0x33;
  if (process.coredump_filter() != coredump_default) {
    note_write(proc + "coredump_filter", fmt::format("{:#x}", process.coredump_filter()),
               "coredump_filter", notes);
  }
  if (process.autogroup_nice() != 0) {
    note_write(proc + "autogroup", std::to_string(process.autogroup_nice()), "autogroup", notes);
  }
  return {};
}

}  // namespace godwit::restore
