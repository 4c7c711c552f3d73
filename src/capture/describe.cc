// A description is built from the outside in: /proc first (whether the program runs or not), then,
// for a frozen tree, what ptrace and the process itself tell (describe_inside.cc).

#include "capture/describe.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <set>

#include "base/clock.h"
#include "base/io.h"
#include "capture/describe_files.h"
#include "capture/describe_inside.h"
#include "capture/describe_memory.h"
#include "sys/pidfd.h"

namespace godwit::capture {
namespace {

constexpr std::uint32_t image_version = 1;
constexpr int live_looks_max = 100;
constexpr timespec live_pause{0, 500'000};

void describe_creds(const sys::ProcStatus& s, image::Creds& creds) {
  creds.set_ruid(s.uids[0]), creds.set_euid(s.uids[1]), creds.set_suid(s.uids[2]),
      creds.set_fsuid(s.uids[3]);
  creds.set_rgid(s.gids[0]), creds.set_egid(s.gids[1]), creds.set_sgid(s.gids[2]),
      creds.set_fsgid(s.gids[3]);
  for (std::uint32_t group : s.groups) creds.add_groups(group);
  creds.set_cap_inheritable(s.cap_inheritable), creds.set_cap_permitted(s.cap_permitted);
  creds.set_cap_effective(s.cap_effective), creds.set_cap_bounding(s.cap_bounding);
  creds.set_cap_ambient(s.cap_ambient);
  creds.set_no_new_privs(s.no_new_privs);
}

void describe_thread_outside(const sys::ProcStatus& s, image::Thread& out) {
  out.set_tid(s.ns_pid.back());
  out.set_comm(s.name);
  describe_creds(s, *out.mutable_creds());
  out.set_seccomp_mode(static_cast<std::uint32_t>(s.seccomp_mode));
}

// Where a /proc link of a directory leads, as the process sees it.
Result<std::string> directory_link(pid_t pid, const char* name, bool& deleted) {
  return without_deleted_mark(TRY(sys::read_link(sys::proc_path(pid, name))), deleted);
}

// Everything but the threads.
// `inside`: asked after mappings were looked at, since it makes one.
Result<void> describe_process_outside(pid_t pid, FileTable& files, const image::Process* earlier,
                                      image::Process& out, const LookInside& inside = {}) {
  sys::ProcStatus s = TRY(sys::read_status(pid));
  sys::ProcStat stat = TRY(sys::read_stat(pid, pid));
  out.set_pid(s.ns_tgid.back());
  out.set_pgid(s.ns_pgid.back());
  out.set_sid(s.ns_sid.back());
  // A parent outside of the capsule's PID namespace has no number there.
  if (Result<sys::ProcStatus> parent = sys::read_status(s.ppid);
      parent.ok() && parent->ns_pid.size() >= s.ns_pid.size())
    out.set_ppid(parent->ns_tgid[s.ns_pid.size() - 1]);
  UniqueFd pidfd = TRY(sys::open_pidfd(pid));
  TRY(describe_memory(pid, files, earlier ? &earlier->mm() : nullptr, *out.mutable_mm()));
  TRY(files.describe_fds(pid, pidfd.get(), out, inside));
  for (const sys::ProcLimit& limit : TRY(sys::read_limits(pid))) {
    image::Rlimit& r = *out.add_rlimits();
    r.set_resource(limit.resource), r.set_soft(limit.soft), r.set_hard(limit.hard);
  }
  out.set_umask(s.umask);
  bool cwd_deleted = false, root_deleted = false;
  out.set_cwd(TRY(directory_link(pid, "cwd", cwd_deleted)));
  out.set_cwd_deleted(cwd_deleted);
  if (cwd_deleted) {
    struct stat st {};
    const std::string place = sys::proc_path(pid, "cwd");
    if (::stat(place.c_str(), &st) != 0) return os_error(fmt::format("stat({})", place));
    image::FileOwner& owner = *out.mutable_cwd_owner();
    owner.set_mode(st.st_mode & 07777), owner.set_uid(st.st_uid), owner.set_gid(st.st_gid);
  }
  out.set_root(TRY(directory_link(pid, "root", root_deleted)));
  out.set_oom_score_adj(static_cast<std::int32_t>(TRY(sys::read_number(pid, "oom_score_adj"))));
  out.set_coredump_filter(
      static_cast<std::uint64_t>(TRY(sys::read_number(pid, "coredump_filter", 16))));
  out.set_exit_signal(static_cast<std::int32_t>(stat.exit_signal));
  out.set_controlling_terminal(stat.tty_nr != 0);
  // "/autogroup-25 nice 0"; absent without CONFIG_SCHED_AUTOGROUP.
  if (Result<std::string> group = read_file(sys::proc_path(pid, "autogroup")); group.ok())
    if (std::size_t at = group->find("nice "); at != std::string::npos)
      out.set_autogroup_nice(std::atoi(group->c_str() + at + 5));
  return {};
}

const image::Process* find_process(const image::Capsule* capsule, pid_t pid_inside) {
  if (capsule == nullptr) return nullptr;
  for (const image::Process& process : capsule->processes())
    if (process.pid() == pid_inside) return &process;
  return nullptr;
}

// Offsets of the capsule's time namespace: "monotonic SECONDS NANOSECONDS", relative to the
// machine's first one.
Result<void> describe_clocks(pid_t pid, image::Clocks& clocks) {
  clocks.set_realtime_ns(realtime_ns());
  clocks.set_monotonic_ns(monotonic_ns());
  clocks.set_raw_ahead_ns(monotonic_raw_ns() - clocks.monotonic_ns());
  clocks.set_boottime_ns(boottime_ns());
  clocks.set_monotonic_coarse_ns(monotonic_coarse_ns());
  auto offsets = [](pid_t of, std::int64_t(&out)[2]) -> Result<void> {
    std::string text = TRY(read_file(fmt::format("/proc/{}/timens_offsets", of)));
    long long s[2] = {}, n[2] = {};
    if (std::sscanf(text.c_str(), "monotonic %lld %lld boottime %lld %lld", &s[0], &n[0], &s[1],
                    &n[1]) != 4)
      return make_error(Errc::unsupported, "timens_offsets: \"{}\"", text);
    for (int i = 0; i < 2; ++i) out[i] = s[i] * 1'000'000'000 + n[i];
    return {};
  };
  // Ours are read of the clock above; theirs differ by the difference of the two offsets.
  std::int64_t theirs[2] = {}, ours[2] = {};
  TRY(offsets(pid, theirs));
  TRY(offsets(::getpid(), ours));
  clocks.set_monotonic_ns(clocks.monotonic_ns() + theirs[0] - ours[0]);
  clocks.set_monotonic_coarse_ns(clocks.monotonic_coarse_ns() + theirs[0] - ours[0]);
  clocks.set_boottime_ns(clocks.boottime_ns() + theirs[1] - ours[1]);
  return {};
}

// Parents before children: a parent's pid may be the larger one, so not by number.
void parents_first(image::Capsule& capsule) {
  if (capsule.processes_size() < 2) return;
  // Moved, not copied: a process may have 60,000 mappings.
  std::vector<image::Process> rest(std::make_move_iterator(capsule.mutable_processes()->begin()),
                                   std::make_move_iterator(capsule.mutable_processes()->end()));
  capsule.clear_processes();
  auto waits = [&](const image::Process& p) {
    return std::any_of(rest.begin(), rest.end(), [&](const image::Process& q) {
      return q.pid() == p.ppid() && q.pid() != p.pid();
    });
  };
  while (!rest.empty()) {
    auto next = std::find_if_not(rest.begin(), rest.end(), waits);
    if (next == rest.end()) next = rest.begin();
    *capsule.add_processes() = std::move(*next);
    rest.erase(next);
  }
}

Result<void> describe_common(pid_t any_pid, image::Capsule& capsule) {
  capsule.set_version(image_version);
  TRY(describe_clocks(any_pid, *capsule.mutable_clocks()));
  parents_first(capsule);
  return {};
}

Result<void> describe_running(pid_t pid, FileTable& files, image::Process& out) {
  TRY(describe_process_outside(pid, files, nullptr, out));
  for (pid_t tid : TRY(sys::list_threads(pid))) {
    Result<sys::ProcStatus> thread = sys::read_status(pid, tid);
    if (!thread.ok() && thread.error().code() == Errc::tracee_gone) continue;
    describe_thread_outside(TRY(std::move(thread)), *out.add_threads());
  }
  return {};
}

// A control group doesn't list the dead, but their parent still owes them a wait. (The capsule's
// init waits for its own at once.)
Result<void> describe_zombies(pid_t parent, image::Capsule& capsule) {
  for (pid_t pid : TRY(sys::list_children(parent))) {
    sys::ProcStatus status = TRY(sys::read_status(pid));
    if (status.state != 'Z' || status.threads > 1) continue;
    sys::ProcStat stat = TRY(sys::read_stat(pid, pid));
    image::Zombie& zombie = *capsule.add_zombies();
    zombie.set_pid(status.ns_tgid.back());
    zombie.set_ppid(TRY(sys::read_status(parent)).ns_tgid.back());
    zombie.set_pgid(status.ns_pgid.back());
    zombie.set_sid(status.ns_sid.back());
    zombie.set_wait_status(stat.exit_code);
    zombie.set_exit_signal(static_cast<std::int32_t>(stat.exit_signal));
    zombie.set_uid(status.uids[0]);
    zombie.set_comm(status.name);
  }
  return {};
}

// In the middle of execve(2) a process has a stack and no more; the vdso comes last.
bool executes(const image::Process& process) {
  const auto& vmas = process.mm().vmas();
  return std::none_of(vmas.begin(), vmas.end(),
                      [](const image::Vma& vma) { return vma.kind() == image::Vma::VDSO; });
}

// `unsettled`: a process ended while it was looked at, which may fail in any way or look like
// something else, or was just executing another program.
Result<void> describe_once(const TreeRef& tree, LiveDescription& live, bool& unsettled) {
  FileTable files(tree, live.capsule, false);
  std::set<pid_t> pids;
  for (pid_t tid : TRY(list_tree_threads(tree))) {
    Result<sys::ProcStatus> status = sys::read_status(tid);
    if (!status.ok() && status.error().code() == Errc::tracee_gone) continue;
    pids.insert(TRY(std::move(status)).tgid);
  }
  for (pid_t pid : pids) {
    image::Process& process = *live.capsule.add_processes();
    Result<void> described = describe_running(pid, files, process);
    if (sys::is_exiting(pid)) {
      unsettled = true;
      continue;
    }
    TRY(std::move(described).with(fmt::format("process {}", pid)));
    unsettled = unsettled || executes(process);
    live.node_pids[process.pid()] = pid;
  }
  if (unsettled || live.node_pids.empty()) return {};
  TRY(files.pipes().describe(live.capsule));
  TRY(describe_common(live.node_pids.begin()->second, live.capsule));
  live.private_file_places = std::move(files).places();
  return {};
}

}  // namespace

// What a process that ended meanwhile has left in the tables can't be told from what others have.
Result<LiveDescription> describe_live(const TreeRef& tree) {
  for (int looks = 1;; ++looks) {
    LiveDescription live;
    bool unsettled = false;
    TRY(describe_once(tree, live, unsettled));
    if (live.node_pids.empty())
      return make_error(Errc::tracee_gone, "no process in {}", tree.freezer_path);
    if (!unsettled) return live;
    if (looks == live_looks_max)
      return make_error(Errc::timeout, "processes come and go faster than they can be looked at");
    ::nanosleep(&live_pause, nullptr);
  }
}

namespace {

// A program that is killed while it is looked at fails in as many ways as there are ways to look.
Result<void> gone_if_dead(pid_t pid, Result<void> result) {
  if (result.ok() || result.error().code() == Errc::tracee_gone) return result;
  Result<sys::ProcStatus> status = sys::read_status(pid);
  const bool dead = !status.ok() || status->state == 'Z' || status->state == 'X';
  if (!dead && result.error().sys_errno() != ESRCH) return result;
  return Error(Errc::tracee_gone, fmt::format("it ended: {}", result.error().what()),
               result.error().sys_errno());
}

Result<void> describe_frozen(FrozenTree& tree, FrozenProcess& process, FileTable& files,
                             const image::Process* earlier, image::Process& out) {
  auto inside = [&](std::span<const int> fds) { return look_at_fds(tree, process, fds); };
  TRY(describe_process_outside(process.pid, files, earlier, out, inside));
  for (const FrozenThread& thread : process.threads)
    describe_thread_outside(TRY(thread.status.valid() ? sys::read_status(thread.status)
                                                      : sys::read_status(process.pid, thread.tid)),
                            *out.add_threads());
  return describe_inside(tree, process, out);
}

// Groups have only this node's numbers there, and their first members may be gone.
Result<void> describe_foreground(std::span<const FrozenProcess> processes,
                                 image::Capsule& capsule) {
  std::map<pid_t, pid_t> groups;
  std::map<pid_t, pid_t> foregrounds;  // By session leader, in the capsule's numbers.
  for (const FrozenProcess& process : processes) {
    const sys::ProcStat stat = TRY(sys::read_stat(process.pid, process.pid));
    const image::Process* image = find_process(&capsule, process.pid_inside);
    groups[stat.pgrp] = image->pgid();
    if (stat.tty_nr != 0 && image->sid() == image->pid())
      foregrounds[process.pid_inside] = stat.tty_group;
  }
  for (image::Process& process : *capsule.mutable_processes())
    if (auto tty = foregrounds.find(process.pid()); tty != foregrounds.end())
      if (auto group = groups.find(tty->second); group != groups.end())
        process.set_foreground_group(group->second);
  return {};
}

}  // namespace

Result<void> FrozenTree::describe(image::Capsule& capsule, const image::Capsule* earlier) {
  if (processes_.empty())
    return make_error(Errc::tracee_gone, "no process in {}", tree_.freezer_path);
  FileTable files(tree_, capsule, true);
  for (FrozenProcess& process : processes_) {
    if (process.threads.empty())
      return make_error(Errc::tracee_gone, "process {} has ended", process.pid_inside);
    Result<void> described = describe_frozen(
        *this, process, files, find_process(earlier, process.pid_inside), *capsule.add_processes());
    TRY(gone_if_dead(process.pid, std::move(described))
            .with(fmt::format("process {}", process.pid_inside)));
    TRY(describe_zombies(process.pid, capsule));
  }
  TRY(describe_foreground(processes_, capsule));
  for (image::Process& process : *capsule.mutable_processes())
    if (process.stop_signal() != 0)
      process.set_stop_waited_for(TRY(is_stop_waited_for(*this, process.ppid(), process.pid())));
  // A program that our death lets go on would find its connections held; so it is kept until
  // somebody has let go of them, and nothing is injected any more.
  if (!files.sockets().empty()) TRY(seal());
  TRY(files.describe_sockets(in_flight_));  // Pipes can come along as messages.
  finish_connects(capsule);
  TRY(files.pipes().describe_with_content(capsule));
  TRY(describe_common(processes_.front().pid, capsule));
  private_file_places_ = std::move(files).places();
  return {};
}

// One batch makes it, waits for us to fetch it, and closes it again, whether we live or not: a
// descriptor that is left behind would shift the numbers of all that the program opens later. Which
// number it will have is known beforehand: the lowest free one, since every thread stands still.
Result<UniqueFd> make_userfaultfd(FrozenTree& tree, FrozenProcess& process) {
  constexpr int user_mode_only = 1;  // Full ones need a privilege that the process may not have.
  int number = 0;
  for (int fd : TRY(sys::list_fds(process.pid))) {
    if (fd != number) break;
    ++number;
  }
  sys::RemoteProcess* remote = TRY(tree.remote(process));
  FrozenThread& thread = process.threads.front();
  TRY(remote->map_arena(thread));
  UniqueFd fetched;
  std::int64_t made = -EPERM;
  for (int flags : {0, user_mode_only}) {
    if (made != -EPERM) break;
    sys::RemoteBatch batch(*remote);
    std::size_t call = batch.call(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);
    batch.pause([&]() -> Result<void> {
      made = batch.result(call);
      if (made < 0) return {};
      INVARIANT(made == number, "userfaultfd is {}, expected {}", made, number);
      fetched = TRY(sys::pidfd_getfd(process.pidfd.get(), number));
      return {};
    });
    batch.call(SYS_close, number);  // EBADF if it wasn't made.
    TRY(remote->run(thread, batch));
  }
  TRY(remote->unmap_arena(thread));
  if (made < 0)
    return os_error(fmt::format("userfaultfd in process {}", process.pid_inside),
                    static_cast<int>(-made));
  return fetched;
}

}  // namespace godwit::capture
