#include "restore/thread_state.h"

#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <cstring>

#include "restore/supported.h"
#include "sys/sched_attr.h"

namespace godwit::restore {
namespace {

// asm/prctl.h and linux/prctl.h of 6.1 know these by other or no names.
constexpr std::uint64_t arch_set_cpuid = 0x1012;
constexpr std::uint64_t pr_set_io_flusher = 57;
constexpr std::uint64_t mce_kill_default = 2;  // PR_MCE_KILL_DEFAULT
constexpr unsigned ss_autodisarm = 1u << 31;
constexpr unsigned ss_disable = 2;

std::uint64_t u(std::int64_t n) { return static_cast<std::uint64_t>(n); }

void add_identity(Batch& b, const image::Thread& t) {
  b.call(SYS_prctl, "prctl(PR_SET_NAME)", {PR_SET_NAME, b.put_string(t.comm())});
  b.call(SYS_set_tid_address, "set_tid_address", {t.clear_child_tid()});
  if (t.robust_list_len() != 0) {
    b.call(SYS_set_robust_list, "set_robust_list", {t.robust_list(), t.robust_list_len()});
  }
  if (t.altstack_sp() != 0 && (t.altstack_flags() & ss_disable) == 0) {
    struct {
      std::uint64_t sp;
      std::int32_t flags, pad;
      std::uint64_t size;
    } stack = {t.altstack_sp(), static_cast<std::int32_t>(t.altstack_flags() & ss_autodisarm), 0,
               t.altstack_size()};
    b.call(SYS_sigaltstack, "sigaltstack", {b.put_value(stack), 0});
  }
  if (t.rseq_addr() != 0) {
    b.call(SYS_rseq, "rseq", {t.rseq_addr(), t.rseq_size(), t.rseq_flags(), t.rseq_signature()});
  }
}

void add_affinity(Batch& b, const image::Thread& t, const cpu_set_t& cpus, Notes& notes) {
  if (t.affinity_size() == 0) return;
  cpu_set_t mask;
  CPU_ZERO(&mask);
  int left = 0;
  for (std::uint32_t cpu : t.affinity()) {
    if (cpu < CPU_SETSIZE && CPU_ISSET(cpu, &cpus)) CPU_SET(cpu, &mask), ++left;
  }
  if (left == 0) {
    notes.push_back(
        fmt::format("thread {}: none of its processors exists here, runs on all", t.tid()));
    return;
  }
  if (left < t.affinity_size()) {
    notes.push_back(fmt::format("thread {}: {} of its {} processors exist here", t.tid(), left,
                                t.affinity_size()));
  }
  b.call(SYS_sched_setaffinity, "sched_setaffinity", {0, sizeof mask, b.put_value(mask)});
}

Result<void> add_scheduling(Batch& b, const ThreadContext& c, Notes& notes) {
  const image::Thread& t = c.thread;
  add_affinity(b, t, c.cpus, notes);
  const sys::SchedAttr attr{.policy = t.sched_policy(),
                            .flags = t.sched_flags(),
                            .nice = t.nice(),
                            .priority = t.rt_priority(),
                            .runtime = t.dl_runtime(),
                            .deadline = t.dl_deadline(),
                            .period = t.dl_period()};
  b.call(SYS_sched_setattr, "sched_setattr", {0, b.put_value(attr), 0});
  // sched_setattr leaves the nice value of other classes as it was.
  if (t.sched_policy() != SCHED_OTHER && t.sched_policy() != SCHED_BATCH)
    b.call(SYS_setpriority, "setpriority", {PRIO_PROCESS, 0, u(t.nice())});
  constexpr std::uint64_t ioprio_who_process = 1;
  if (t.ioprio() != 0) b.call(SYS_ioprio_set, "ioprio_set", {ioprio_who_process, 0, t.ioprio()});
  if (t.timerslack_ns() != 0) {
    b.call(SYS_prctl, "prctl(PR_SET_TIMERSLACK)", {PR_SET_TIMERSLACK, t.timerslack_ns()});
  }
  if (!t.mempolicy().empty()) {
    if (t.mempolicy().size() < 4)
      return make_error(Errc::invalid, "memory policy of thread {}", t.tid());
    std::uint32_t mode = 0;
    std::memcpy(&mode, t.mempolicy().data(), 4);
    std::string mask = t.mempolicy().substr(4);
    mask.resize((mask.size() + 7) / 8 * 8);
    std::uint64_t at = mask.empty() ? 0 : b.put(std::as_bytes(std::span(mask)));
    b.call(SYS_set_mempolicy, "set_mempolicy", {mode, at, mask.empty() ? 0 : mask.size() * 8 + 1});
  }
  return {};
}

Result<void> add_controls(Batch& b, const image::Thread& t) {
  if (t.personality() != 0) b.call(SYS_personality, "personality", {t.personality()});
  for (const image::SpeculationCtrl& s : t.speculation()) {
    // The value is that of PR_GET_SPECULATION_CTRL; only what prctl may set, and isn't default.
    constexpr std::uint32_t settable =
        PR_SPEC_DISABLE | PR_SPEC_FORCE_DISABLE | PR_SPEC_DISABLE_NOEXEC;
    if ((s.value() & PR_SPEC_PRCTL) == 0 || (s.value() & settable) == 0) continue;
    b.call(SYS_prctl, "prctl(PR_SET_SPECULATION_CTRL)",
           {PR_SET_SPECULATION_CTRL, s.which(), s.value() & settable});
  }
  if (t.mce_kill_policy() != mce_kill_default) {
    b.call(SYS_prctl, "prctl(PR_MCE_KILL)", {PR_MCE_KILL, PR_MCE_KILL_SET, t.mce_kill_policy()});
  }
  if (t.io_flusher()) b.call(SYS_prctl, "prctl(PR_SET_IO_FLUSHER)", {pr_set_io_flusher, 1});
  if (t.cpuid_faulting()) b.call(SYS_arch_prctl, "arch_prctl(ARCH_SET_CPUID)", {arch_set_cpuid, 0});
  return {};
}

Result<void> add_seccomp(Batch& b, const ThreadContext& c) {
  if (c.thread.seccomp_mode() == SECCOMP_MODE_STRICT) {
    b.call(SYS_prctl, "prctl(PR_SET_SECCOMP)", {PR_SET_SECCOMP, SECCOMP_MODE_STRICT});
    return {};
  }
  for (int i = c.seccomp_shared; i < c.thread.seccomp_filters_size(); ++i) {
    TRY(add_seccomp_filter(b, c.thread.seccomp_filters(i), 0));
  }
  return {};
}

void add_capabilities(Batch& b, std::uint64_t effective, std::uint64_t permitted,
                      std::uint64_t inheritable) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2];
  for (int i = 0; i < 2; ++i) {
    data[i].effective = static_cast<std::uint32_t>(effective >> (32 * i));
    data[i].permitted = static_cast<std::uint32_t>(permitted >> (32 * i));
    data[i].inheritable = static_cast<std::uint32_t>(inheritable >> (32 * i));
  }
  b.call(SYS_capset, "capset", {b.put_value(header), b.put(std::as_bytes(std::span(data)))});
}

}  // namespace

Result<void> add_thread_state(Batch& b, const ThreadContext& c, Notes& notes) {
  b.about(fmt::format("thread {}", c.thread.tid()));
  add_identity(b, c.thread);
  TRY(add_scheduling(b, c, notes));
  TRY(add_controls(b, c.thread));
  if (c.thread.tsc_mode() == PR_TSC_SIGSEGV) {
    b.call(SYS_prctl, "prctl(PR_SET_TSC)", {PR_SET_TSC, PR_TSC_SIGSEGV});
  }
  return add_seccomp(b, c);
}

const image::PosixTimer* timer_behind(const image::Process& process, const std::string& siginfo) {
  siginfo_t info;
  if (siginfo.size() != sizeof info) return nullptr;
  std::memcpy(&info, siginfo.data(), sizeof info);
  if (info.si_code != SI_TIMER) return nullptr;
  for (const image::PosixTimer& t : process.posix_timers()) {
    const bool wall_clock =
        t.clock() == CLOCK_REALTIME || t.clock() == CLOCK_MONOTONIC || t.clock() == CLOCK_BOOTTIME;
    if (t.id() == info.si_timerid && t.signal() == info.si_signo && t.interval_ns() > 0 &&
        t.value_ns() > 0 && wall_clock)
      return &t;
  }
  return nullptr;
}

void add_pending_signals(Batch& b, const ThreadContext& c) {
  for (const std::string& info : c.thread.pending()) {
    if (timer_behind(c.process, info) != nullptr) continue;
    std::int32_t signal = 0;
    std::memcpy(&signal, info.data(), sizeof signal);
    b.call(
        SYS_rt_tgsigqueueinfo, "rt_tgsigqueueinfo",
        {u(c.process.pid()), u(c.thread.tid()), u(signal), b.put(std::as_bytes(std::span(info)))});
  }
}

// From root with all capabilities to what the program had. SECBIT_NO_SETUID_FIXUP keeps the
// capabilities over setresuid; each step then needs only what is still there:
// inheritable before bounding (a capability outside the bounding set can't be added), ambient
// before securebits (which may forbid raising) and before permitted shrinks (the kernel
// intersects).
Result<void> add_credentials(Batch& b, const ThreadContext& c) {
  const image::Creds& k = c.thread.creds();
  b.about(fmt::format("credentials of thread {}", c.thread.tid()));
  if (std::uint64_t missing = (k.cap_permitted() | k.cap_bounding()) & ~c.cap_bounding;
      missing != 0) {
    return make_error(Errc::refused, "thread {}: this node can't give capabilities {:#x}",
                      c.thread.tid(), missing);
  }
  b.call(SYS_prctl, "prctl(PR_SET_SECUREBITS)",
         {PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS});
  std::uint64_t groups = 0;
  if (k.groups_size() > 0) {
    groups = b.put(
        std::as_bytes(std::span(k.groups().data(), static_cast<std::size_t>(k.groups_size()))));
  }
  b.call(SYS_setgroups, "setgroups", {u(k.groups_size()), groups});
  b.call(SYS_setresgid, "setresgid", {k.rgid(), k.egid(), k.sgid()});
  if (k.fsgid() != k.egid()) b.call(SYS_setfsgid, "setfsgid", {k.fsgid()});
  b.call(SYS_setresuid, "setresuid", {k.ruid(), k.euid(), k.suid()});
  if (k.fsuid() != k.euid()) b.call(SYS_setfsuid, "setfsuid", {k.fsuid()});
  add_capabilities(b, c.cap_bounding, c.cap_bounding, k.cap_inheritable());
  for (std::uint64_t cap = 0; cap < 64; ++cap) {
    if (((c.cap_bounding & ~k.cap_bounding()) >> cap & 1) != 0) {
      b.call(SYS_prctl, "prctl(PR_CAPBSET_DROP)", {PR_CAPBSET_DROP, cap});
    }
  }
  for (std::uint64_t cap = 0; cap < 64; ++cap) {
    if ((k.cap_ambient() >> cap & 1) != 0) {
      b.call(SYS_prctl, "prctl(PR_CAP_AMBIENT_RAISE)",
             {PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0});
    }
  }
  std::uint64_t securebits = k.securebits() | (k.keep_caps() ? std::uint64_t{SECBIT_KEEP_CAPS} : 0);
  b.call(SYS_prctl, "prctl(PR_SET_SECUREBITS)", {PR_SET_SECUREBITS, securebits});
  add_capabilities(b, k.cap_effective(), k.cap_permitted(), k.cap_inheritable());
  if (k.no_new_privs())
    b.call(SYS_prctl, "prctl(PR_SET_NO_NEW_PRIVS)", {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0});
  // A change of credentials clears it.
  if (c.thread.pdeath_signal() != 0) {
    b.call(SYS_prctl, "prctl(PR_SET_PDEATHSIG)", {PR_SET_PDEATHSIG, u(c.thread.pdeath_signal())});
  }
  return {};
}

Result<void> add_seccomp_filter(Batch& b, const image::SeccompFilter& filter,
                                unsigned extra_flags) {
  std::size_t count = filter.instructions().size() / sizeof(sock_filter);
  if (count == 0 || count > BPF_MAXINSNS ||
      filter.instructions().size() % sizeof(sock_filter) != 0) {
    return make_error(Errc::invalid, "a seccomp filter of {} bytes", filter.instructions().size());
  }
  struct {
    std::uint16_t count, pad[3];
    std::uint64_t instructions;
  } program = {static_cast<std::uint16_t>(count),
               {},
               b.put(std::as_bytes(std::span(filter.instructions())))};
  b.call(SYS_seccomp, "seccomp(SECCOMP_SET_MODE_FILTER)",
         {SECCOMP_SET_MODE_FILTER, filter.flags() | extra_flags, b.put_value(program)});
  return {};
}

int seccomp_shared(const image::Process& process) {
  int shared = process.threads(0).seccomp_filters_size();
  for (const image::Thread& t : process.threads()) {
    int same = 0;
    while (same < shared && same < t.seccomp_filters_size() &&
           t.seccomp_filters(same).instructions() ==
               process.threads(0).seccomp_filters(same).instructions() &&
           t.seccomp_filters(same).flags() == process.threads(0).seccomp_filters(same).flags()) {
      ++same;
    }
    shared = same;
  }
  return shared;
}

std::size_t thread_data_bytes(const ThreadContext& c) {
  constexpr std::size_t calls_max = 160;
  std::size_t bytes =
      calls_max * sizeof(RemoteCall) + 4096 + c.thread.mempolicy().size() +
      static_cast<std::size_t>(c.thread.creds().groups_size()) * 4 +
      static_cast<std::size_t>(c.thread.pending_size()) * (sizeof(RemoteCall) + siginfo_bytes + 16);
  for (int i = c.seccomp_shared; i < c.thread.seccomp_filters_size(); ++i) {
    bytes += c.thread.seccomp_filters(i).instructions().size() + sizeof(RemoteCall) + 64;
  }
  return bytes;
}

}  // namespace godwit::restore
