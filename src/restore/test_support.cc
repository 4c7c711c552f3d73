#include "restore/test_support.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "base/clock.h"
#include "base/io.h"
#include "sys/proc.h"
#include "sys/remote.h"
#include "sys/tracing.h"

namespace godwit::restore {
namespace {

constexpr int wait_ms = 30'000;

struct Ask {
  char what;
  std::int64_t a, b;
};

// One descriptor along with a message, or none (-1).
bool send_with_fd(int channel, const void* data, std::size_t bytes, int fd) {
  iovec iov{const_cast<void*>(data), bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr m{};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  if (fd >= 0) {
    m.msg_control = control;
    m.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&m);
    *c = {CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
    std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
  }
  return sendmsg(channel, &m, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes);
}

bool receive_with_fd(int channel, void* data, std::size_t bytes, UniqueFd& fd) {
  iovec iov{data, bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr m{};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  m.msg_control = control;
  m.msg_controllen = sizeof control;
  if (recvmsg(channel, &m, MSG_CMSG_CLOEXEC) != static_cast<ssize_t>(bytes)) return false;
  if (cmsghdr* c = CMSG_FIRSTHDR(&m); c != nullptr && c->cmsg_type == SCM_RIGHTS) {
    int got = -1;
    std::memcpy(&got, CMSG_DATA(c), sizeof got);
    fd.reset(got);
  }
  return true;
}

pid_t fork_as(pid_t pid) {
  clone_args args{};
  args.exit_signal = SIGCHLD;
  args.set_tid = reinterpret_cast<std::uint64_t>(&pid);
  args.set_tid_size = 1;
  return static_cast<pid_t>(syscall(SYS_clone3, &args, sizeof args));
}

std::int64_t unshare_clocks(const Ask& ask) {
  if (unshare(CLONE_NEWTIME) != 0) return -errno;
  auto line = [](const char* clock, std::int64_t ns) {
    std::int64_t s = ns / 1'000'000'000, rest = ns % 1'000'000'000;
    if (rest < 0) --s, rest += 1'000'000'000;
    return fmt::format("{} {} {}\n", clock, s, rest);
  };
  return write_file("/proc/self/timens_offsets", line("monotonic", ask.a) + line("boottime", ask.b))
             ? 0
             : -EIO;
}

// PID 1 of a shell: a fork of the test program.
[[noreturn]] void run_init(int channel, const int (&stdio)[2],
                           const std::function<int()>& program) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
  mount("proc", "/proc", "proc", 0, nullptr);
  for (const char* dir : {"/tmp", "/dev/shm"}) mount("tmpfs", dir, "tmpfs", 0, nullptr);
  Ask ask{};
  UniqueFd fd;
  while (receive_with_fd(channel, &ask, sizeof ask, fd)) {
    std::int64_t answer = -EINVAL;
    if (ask.what == 'k') {  // Skeleton.
      answer = fork_as(static_cast<pid_t>(ask.a));
      if (answer == 0) {
        for (;;) pause();  // Its end of the channel has the number that it has here.
      }
      if (answer > 0) answer = fd.get();
      fd.reset();
    } else if (ask.what == 'p') {  // Program.
      answer = fork_as(static_cast<pid_t>(ask.a));
      if (answer == 0) {
        setsid();
        dup2(stdio[0], 0);
        dup2(stdio[1], 1);
        dup2(stdio[1], 2);
        close_range(3, ~0u, 0);
        _exit(program());
      }
    } else if (ask.what == 't') {
      answer = unshare_clocks(ask);
    } else if (ask.what == 'w') {
      int status = 0;
      answer = waitpid(static_cast<pid_t>(ask.a), &status, 0) == ask.a ? status : -errno;
    } else if (ask.what == 'l') {
      answer = write_file("/proc/sys/kernel/ns_last_pid", std::to_string(ask.a)) ? 0 : -EIO;
    }
    (void)!write(channel, &answer, sizeof answer);
  }
  _exit(0);
}

Result<void> make_pipe(UniqueFd (&ends)[2]) {
  int raw[2];
  if (pipe2(raw, O_CLOEXEC) != 0) return os_error("pipe2");
  ends[0].reset(raw[0]);
  ends[1].reset(raw[1]);
  return {};
}

}  // namespace

std::string why_no_shells() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return "the programs are forks of this test: the sanitizer's shadow (terabytes) would travel "
         "along";
#endif
  if (geteuid() != 0) return "needs root: PID namespaces, ptrace, set_tid";
  auto shell = TestShell::create();
  return shell ? std::string() : shell.error().what();
}

Result<std::unique_ptr<TestShell>> TestShell::create(const std::function<int()>& program) {
  std::unique_ptr<TestShell> shell(new TestShell);
  shell->group_ = std::make_unique<sys::CgroupGroup>(TRY(
      sys::CgroupGroup::create(fmt::format("godwit-restore-test-{}-{}", getpid(), random_hex(4)))));
  TRY(make_pipe(shell->stdin_));
  TRY(make_pipe(shell->stdout_));
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    return os_error("socketpair");
  shell->channel_.reset(pair[0]);
  UniqueFd theirs(pair[1]);
  clone_args args{};
  args.flags = CLONE_NEWPID | CLONE_NEWNS;
  args.exit_signal = SIGCHLD;
  pid_t pid = static_cast<pid_t>(syscall(SYS_clone3, &args, sizeof args));
  if (pid == 0) run_init(theirs.get(), {shell->stdin_[0].get(), shell->stdout_[1].get()}, program);
  if (pid < 0) return os_error("clone3(init)");
  shell->init_pid_ = pid;
  return shell;
}

TestShell::~TestShell() {
  if (init_pid_ > 0) {
    kill(init_pid_, SIGKILL);
    (void)group_->thaw();
    waitpid(init_pid_, nullptr, 0);
  }
  if (group_) (void)sys::CgroupGroup::remove(group_->name());
}

Result<std::int64_t> TestShell::ask(char what, std::int64_t a, std::int64_t b, int send_fd) {
  Ask message{what, a, b};
  std::int64_t answer = 0;
  if (!send_with_fd(channel_.get(), &message, sizeof message, send_fd))
    return os_error("sendmsg(init)");
  if (read(channel_.get(), &answer, sizeof answer) != sizeof answer) return os_error("read(init)");
  if (answer < 0)
    return os_error(fmt::format("init: {}({}, {})", what, a, b), static_cast<int>(-answer));
  return answer;
}

Result<pid_t> TestShell::child_node_pid(pid_t pid) {
  std::string children = TRY(read_file(fmt::format("/proc/{0}/task/{0}/children", init_pid_)));
  for (std::size_t at = 0; at < children.size();) {
    pid_t child = std::atoi(children.c_str() + at);
    auto status = sys::read_status(child);
    if (status && !status->ns_pid.empty() && status->ns_pid.back() == pid) return child;
    at = std::min(children.find(' ', at), children.size()) + 1;
  }
  return make_error(Errc::not_found, "no child {} of the test's init", pid);
}

Result<pid_t> TestShell::spawn(pid_t pid) {
  TRY(ask('p', pid, 0, -1));
  return child_node_pid(pid);
}

Result<int> TestShell::wait_child(pid_t pid) { return static_cast<int>(TRY(ask('w', pid, 0, -1))); }

void TestShell::kill_init() { kill(init_pid_, SIGKILL); }

Result<std::string> TestShell::read_bytes(std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) {
    pollfd p{stdout_[0].get(), POLLIN, 0};
    if (poll(&p, 1, wait_ms) <= 0)
      return make_error(Errc::timeout, "the program wrote only '{}'", text);
    char buffer[256];
    ssize_t n = read(stdout_[0].get(), buffer, std::min(sizeof buffer, bytes - text.size()));
    if (n <= 0) return make_error(Errc::peer_lost, "the program wrote only '{}'", text);
    text.append(buffer, static_cast<std::size_t>(n));
  }
  return text;
}

Result<char> TestShell::read_byte() { return TRY(read_bytes(1))[0]; }

Result<void> TestShell::write_byte(char byte) {
  if (write(stdin_[1].get(), &byte, 1) != 1) return os_error("write(stdin)");
  return {};
}

Result<SkeletonSource::Forked> TestShell::fork_skeleton(pid_t pid) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    return os_error("socketpair");
  UniqueFd ours(pair[0]), theirs(pair[1]);
  Forked forked;
  forked.channel_there = static_cast<int>(TRY(ask('k', pid, 0, theirs.get())));
  forked.node_pid = TRY(child_node_pid(pid));
  forked.channel = std::move(ours);
  TRY(group_->add(forked.node_pid));
  return forked;
}

Result<UniqueFd> TestShell::set_clocks(std::int64_t monotonic_delta_ns,
                                       std::int64_t boottime_delta_ns) {
  TRY(ask('t', monotonic_delta_ns, boottime_delta_ns, -1));
  return open_fd(fmt::format("/proc/{}/ns/time_for_children", init_pid_), O_RDONLY);
}

Result<UniqueFd> TestShell::stdio(std::uint32_t index, bool) {
  int fd = index == 0 ? stdin_[0].get() : stdout_[1].get();
  return open_fd(own_fd_path(fd), index == 0 ? O_RDONLY : O_WRONLY);
}

Result<UniqueFd> TestShell::socket(const image::Socket&) {
  return make_error(Errc::unsupported, "these shells have no network");
}

Result<UniqueFd> TestShell::terminal() {
  return make_error(Errc::unsupported, "this shell has no terminal");
}

Result<UniqueFd> TestShell::root() {
  return open_fd(fmt::format("/proc/{}/root", init_pid_), O_PATH | O_DIRECTORY);
}

Result<void> TestShell::set_last_pid(pid_t pid) {
  TRY(ask('l', pid, 0, -1));
  return {};
}
Result<void> TestShell::freeze_tree() { return group_->freeze(); }
Result<void> TestShell::thaw_tree() {
  if (std::exchange(fail_thaw_, false)) return make_error(Errc::os, "this thaw was to fail");
  return group_->thaw();
}

Result<StoppedProgram> StoppedProgram::stop(pid_t node_pid, pid_t pid) {
  StoppedProgram s;
  s.node_pid_ = node_pid;
  s.pid_ = pid;
  for (bool more = true; more;) {
    more = false;
    for (pid_t tid : TRY(sys::list_threads(node_pid))) {
      if (std::find(s.tids_.begin(), s.tids_.end(), tid) != s.tids_.end()) continue;
      more = true;
      TRY(sys::ptrace_seize(tid, PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP));
      TRY(sys::ptrace_interrupt(tid));
      TRY(sys::wait_stop(tid, 10'000'000));
      s.tids_.push_back(tid);
    }
  }
  return s;
}

// An init doesn't end before its namespace is empty, nor a tracee before its tracer has looked.
StoppedProgram::~StoppedProgram() {
  if (tids_.empty()) return;
  kill(node_pid_, SIGKILL);
  for (auto tid = tids_.rbegin(); tid != tids_.rend(); ++tid) {
    int status = 0;
    while (waitpid(*tid, &status, __WALL) == *tid && WIFSTOPPED(status))
      ptrace(PTRACE_CONT, *tid, nullptr, nullptr);
  }
}

Result<void> StoppedProgram::resume() {
  for (pid_t tid : tids_) TRY(sys::ptrace_detach(tid, 0));
  tids_.clear();
  return {};
}

Result<image::Capsule> StoppedProgram::describe() {
  image::Capsule c;
  c.set_version(1);
  c.mutable_clocks()->set_monotonic_ns(monotonic_ns());
  c.mutable_clocks()->set_boottime_ns(boottime_ns());
  c.mutable_clocks()->set_realtime_ns(realtime_ns());
  c.set_next_pid(200);
  image::Process& p = *c.add_processes();
  p.set_pid(pid_);
  p.set_ppid(1);
  p.set_pgid(pid_);
  p.set_sid(pid_);
  TRY(describe_memory(c));
  TRY(describe_files(c));
  TRY(describe_threads(p));
  TRY(describe_process(p));
  return c;
}

Result<void> StoppedProgram::describe_threads(image::Process& p) {
  sys::RemoteProcess remote = TRY(sys::RemoteProcess::open(node_pid_, pid_));
  for (pid_t tid : tids_) {
    image::Thread& t = *p.add_threads();
    sys::ProcStatus status = TRY(sys::read_status(node_pid_, tid));
    t.set_tid(status.ns_pid.back());
    t.set_comm(status.name);
    sys::StoppedThread stopped{tid, t.tid(), TRY(sys::ptrace_get_regs(tid))};
    const sys::Regs original = stopped.regs;
    t.set_xstate(TRY(sys::ptrace_get_xstate(tid)));
    t.set_signal_mask(TRY(sys::ptrace_get_sigmask(tid)));
    for (const siginfo_t& info : TRY(sys::ptrace_peek_siginfo(tid, false)))
      t.add_pending(&info, 128);
    sys::RseqConfig rseq = TRY(sys::ptrace_get_rseq(tid));
    t.set_rseq_addr(rseq.address), t.set_rseq_size(rseq.size), t.set_rseq_signature(rseq.signature);
    std::uint64_t list[2] = {};
    if (syscall(SYS_get_robust_list, tid, &list[0], &list[1]) != 0)
      return os_error("get_robust_list");
    t.set_robust_list(list[0]), t.set_robust_list_len(list[1]);
    TRY(remote.map_arena(stopped));
    sys::RemoteBatch b(remote);
    RemoteAddr stack = b.space(sizeof(stack_t)), clear = b.space(8);
    b.call(SYS_sigaltstack, 0, stack);
    b.call(SYS_prctl, PR_GET_TID_ADDRESS, clear);
    std::size_t slack = b.call(SYS_prctl, PR_GET_TIMERSLACK);
    std::size_t person = b.call(SYS_personality, 0xffffffffu);
    TRY(remote.run(stopped, b));
    auto alt = b.get<stack_t>(stack);
    t.set_altstack_sp(reinterpret_cast<std::uint64_t>(alt.ss_sp));
    t.set_altstack_size(alt.ss_size),
        t.set_altstack_flags(static_cast<std::uint32_t>(alt.ss_flags));
    t.set_clear_child_tid(b.get<std::uint64_t>(clear));
    t.set_timerslack_ns(static_cast<std::uint64_t>(b.result(slack)));
    t.set_personality(static_cast<std::uint64_t>(b.result(person)));
    TRY(remote.unmap_arena(stopped));
    const sys::Regs& regs = original;
    if (static_cast<std::int64_t>(regs.rax) == sys::err_restart_restartblock &&
        sys::in_syscall(regs)) {
      image::Restart& r = *t.mutable_restart();  // The test fills in what is left.
      r.set_nr(static_cast<std::int64_t>(regs.orig_rax));
      for (std::uint64_t a : {regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9})
        r.add_args(a);
    }
    t.set_regs(&regs, sizeof regs);
    t.set_mce_kill_policy(2);
    sched_param param{};
    sched_getparam(tid, &param);
    t.set_sched_policy(static_cast<std::uint32_t>(sched_getscheduler(tid)));
    t.set_nice(getpriority(PRIO_PROCESS, static_cast<id_t>(tid)));
    t.set_rt_priority(static_cast<std::uint32_t>(param.sched_priority));
    image::Creds& k = *t.mutable_creds();
    k.set_ruid(status.uids[0]), k.set_euid(status.uids[1]), k.set_suid(status.uids[2]),
        k.set_fsuid(status.uids[3]);
    k.set_rgid(status.gids[0]), k.set_egid(status.gids[1]), k.set_sgid(status.gids[2]),
        k.set_fsgid(status.gids[3]);
    for (std::uint32_t g : status.groups) k.add_groups(g);
    k.set_cap_inheritable(status.cap_inheritable), k.set_cap_permitted(status.cap_permitted);
    k.set_cap_effective(status.cap_effective), k.set_cap_bounding(status.cap_bounding);
    k.set_cap_ambient(status.cap_ambient), k.set_no_new_privs(status.no_new_privs);
    t.set_seccomp_mode(static_cast<std::uint32_t>(status.seccomp_mode));
    for (unsigned i = 0; status.seccomp_mode == 2; ++i) {
      auto filter = TRY(sys::ptrace_get_seccomp(tid, i));
      if (!filter) break;
      t.add_seccomp_filters()->set_instructions(filter->instructions.data(),
                                                filter->instructions.size() * sizeof(sock_filter));
    }
  }
  return {};
}

Result<void> StoppedProgram::describe_process(image::Process& p) {
  sys::RemoteProcess remote = TRY(sys::RemoteProcess::open(node_pid_, pid_));
  sys::StoppedThread leader{tids_[0], pid_, TRY(sys::ptrace_get_regs(tids_[0]))};
  const sys::Regs original = leader.regs;
  TRY(remote.map_arena(leader));
  sys::RemoteBatch b(remote);
  RemoteAddr actions[65], timer = b.space(sizeof(itimerval));
  for (int s = 1; s <= 64; ++s) {
    actions[s] = b.space(32);
    if (s != SIGKILL && s != SIGSTOP) b.call(SYS_rt_sigaction, s, 0, actions[s], 8);
  }
  std::size_t brk = b.call(SYS_brk, 0), dumpable = b.call(SYS_prctl, PR_GET_DUMPABLE);
  b.call(SYS_getitimer, ITIMER_REAL, timer);
  TRY(remote.run(leader, b));
  for (int s = 1; s <= 64; ++s) {
    auto a = b.get<std::array<std::uint64_t, 4>>(actions[s]);
    if (a[0] == 0 && a[1] == 0) continue;
    image::SigAction& action = *p.add_sigactions();
    action.set_signal(s);
    action.set_handler(a[0]), action.set_flags(a[1]), action.set_restorer(a[2]),
        action.set_mask(a[3]);
  }
  p.mutable_mm()->set_brk(static_cast<std::uint64_t>(b.result(brk)));
  p.set_dumpable(static_cast<std::uint32_t>(b.result(dumpable)));
  auto t = b.get<itimerval>(timer);
  if (t.it_value.tv_sec != 0 || t.it_value.tv_usec != 0) {
    image::IntervalTimer& i = *p.add_itimers();
    i.set_which(ITIMER_REAL);
    i.set_value_us(t.it_value.tv_sec * 1'000'000 + t.it_value.tv_usec);
    i.set_interval_us(t.it_interval.tv_sec * 1'000'000 + t.it_interval.tv_usec);
  }
  TRY(remote.unmap_arena(leader));
  TRY(sys::ptrace_set_regs(tids_[0], original));
  sys::ProcStat stat = TRY(sys::read_stat(node_pid_, node_pid_));
  image::Mm& mm = *p.mutable_mm();
  mm.set_start_code(stat.start_code), mm.set_end_code(stat.end_code);
  mm.set_start_data(stat.start_data), mm.set_end_data(stat.end_data),
      mm.set_start_brk(stat.start_brk);
  mm.set_start_stack(stat.start_stack), mm.set_arg_start(stat.arg_start),
      mm.set_arg_end(stat.arg_end);
  mm.set_env_start(stat.env_start), mm.set_env_end(stat.env_end);
  mm.set_auxv(TRY(read_file(fmt::format("/proc/{}/auxv", node_pid_))));
  sys::ProcStatus status = TRY(sys::read_status(node_pid_));
  p.set_umask(status.umask);
  p.set_exit_signal(SIGCHLD);
  p.set_coredump_filter(0x33);
  p.set_cwd(TRY(sys::read_link(fmt::format("/proc/{}/cwd", node_pid_))));
  p.set_root("/");
  for (const sys::ProcLimit& l : TRY(sys::read_limits(node_pid_))) {
    image::Rlimit& r = *p.add_rlimits();
    r.set_resource(l.resource), r.set_soft(l.soft), r.set_hard(l.hard);
  }
  for (const siginfo_t& info : TRY(sys::ptrace_peek_siginfo(node_pid_, true)))
    p.add_pending(&info, 128);
  return {};
}

Result<std::uint32_t> StoppedProgram::private_file(image::Capsule& c, const std::string& proc_path,
                                                   image::PrivateFile::Kind kind,
                                                   const std::string& name) {
  UniqueFd fd = TRY(open_fd(proc_path, O_RDWR));
  struct stat st {};
  if (fstat(fd.get(), &st) != 0) return os_error("fstat");
  if (auto known = by_inode_.find(st.st_ino); known != by_inode_.end()) return known->second;
  image::PrivateFile& f = *c.add_private_files();
  f.set_id(static_cast<std::uint32_t>(c.private_files_size()));
  f.set_kind(kind);
  f.set_path(name);
  f.set_mode(st.st_mode), f.set_uid(st.st_uid), f.set_gid(st.st_gid),
      f.set_size(static_cast<std::uint64_t>(st.st_size));
  f.set_mtime_ns(st.st_mtim.tv_sec * 1'000'000'000 + st.st_mtim.tv_nsec);
  f.set_space(0x8000'0000 | f.id());
  if (kind == image::PrivateFile::MEMFD)
    f.set_seals(static_cast<std::uint32_t>(std::max(0, fcntl(fd.get(), F_GET_SEALS))) & ~1u);
  by_inode_[st.st_ino] = f.id();
  content_[f.id()] = std::move(fd);
  return f.id();
}

// What kind of private file a name in /proc stands for.
static image::PrivateFile::Kind kind_of(std::string& name) {
  if (name.starts_with("/memfd:")) {
    name = name.substr(7);
    return image::PrivateFile::MEMFD;
  }
  if (name.starts_with("/dev/zero")) return image::PrivateFile::SHMEM;
  return image::PrivateFile::UNLINKED;
}

Result<std::uint32_t> StoppedProgram::mapped_file(image::Capsule& c, const std::string& proc_path,
                                                  const std::string& path) {
  image::Mm& mm = *c.mutable_processes(0)->mutable_mm();
  std::string name = path;
  bool deleted = path.ends_with(" (deleted)");
  if (deleted) name.resize(name.size() - 10);
  image::FileRef ref;
  ref.set_path(name);
  if (deleted || name.starts_with("/memfd:")) {
    image::PrivateFile::Kind kind = kind_of(name);
    ref.set_where(image::FileRef::PRIVATE);
    ref.set_private_file(TRY(private_file(c, proc_path, kind, name)));
  }
  for (const image::FileRef& known : mm.mapped()) {
    if (known.path() == ref.path() && known.private_file() == ref.private_file()) return known.id();
  }
  ref.set_id(static_cast<std::uint32_t>(mm.mapped_size()) + 1);
  *mm.add_mapped() = ref;
  return ref.id();
}

Result<void> StoppedProgram::describe_memory(image::Capsule& c) {
  image::Mm& mm = *c.mutable_processes(0)->mutable_mm();
  constexpr std::pair<const char*, std::uint32_t> flags[] = {
      {"dc", image::VMA_DONTFORK},    {"dd", image::VMA_DONTDUMP},   {"hg", image::VMA_HUGEPAGE},
      {"nh", image::VMA_NOHUGEPAGE},  {"wf", image::VMA_WIPEONFORK}, {"lo", image::VMA_LOCKED},
      {"lf", image::VMA_LOCKONFAULT}, {"rr", image::VMA_RANDOM},     {"sr", image::VMA_SEQUENTIAL},
      {"nr", image::VMA_NORESERVE}};
  for (const sys::SmapsEntry& e : TRY(sys::read_smaps(node_pid_))) {
    if (e.map.path == "[vsyscall]") continue;
    image::Vma& v = *mm.add_vmas();
    v.set_start(e.map.start), v.set_end(e.map.end);
    v.set_prot((e.map.read ? PROT_READ : 0) | (e.map.write ? PROT_WRITE : 0) |
               (e.map.exec ? PROT_EXEC : 0));
    v.set_shared(e.map.shared);
    v.set_pgoff_bytes(e.map.offset);
    v.set_growsdown(e.has("gd"));
    v.set_path_hint(e.map.path);
    for (auto [name, flag] : flags) {
      if (e.has(name)) v.set_flags(v.flags() | flag);
    }
    if (e.map.path == "[vdso]") v.set_kind(image::Vma::VDSO);
    if (e.map.path == "[vvar]") v.set_kind(image::Vma::VVAR);
    if (e.map.path == "[vvar_vclock]") v.set_kind(image::Vma::VVAR_VCLOCK);
    if (e.map.inode == 0) {
      if (e.map.path.starts_with("[anon:"))
        v.set_anon_name(e.map.path.substr(6, e.map.path.size() - 7));
      continue;
    }
    std::string proc_path = fmt::format("/proc/{}/map_files/{}", node_pid_, e.map.map_files_name());
    std::string path = TRY(sys::read_link(proc_path));
    if (e.map.shared && path.starts_with("/dev/zero")) {
      std::string name = path;
      v.set_kind(image::Vma::SHARED_ANON);
      v.set_shmem(TRY(private_file(c, proc_path, kind_of(name), "dev/zero")));
    } else {
      v.set_kind(image::Vma::FILE);
      v.set_file(TRY(mapped_file(c, proc_path, path)));
      if (e.map.shared && e.has("sh"))
        mm.mutable_mapped(static_cast<int>(v.file()) - 1)->set_written(e.map.write);
    }
  }
  std::string exe = fmt::format("/proc/{}/exe", node_pid_);
  mm.set_exe_file(TRY(mapped_file(c, exe, TRY(sys::read_link(exe)))));
  return {};
}

Result<void> StoppedProgram::describe_files(image::Capsule& c) {
  image::Process& p = *c.mutable_processes(0);
  std::vector<int> numbers = TRY(sys::list_fds(node_pid_));
  for (int number : numbers) {
    sys::FdInfo info = TRY(sys::read_fdinfo(node_pid_, number));
    image::Fd& fd = *p.add_fds();
    fd.set_fd(number);
    fd.set_cloexec((info.flags & O_CLOEXEC) != 0);
    for (const image::Fd& other : p.fds()) {
      if (other.fd() != number &&
          syscall(SYS_kcmp, node_pid_, node_pid_, 0, other.fd(), number) == 0)
        fd.set_file(other.file());
    }
    if (fd.file() != 0) continue;
    image::OpenFile& f = *c.add_files();
    f.set_id(static_cast<std::uint32_t>(c.files_size()));
    fd.set_file(f.id());
    f.set_flags(info.flags & ~static_cast<std::uint32_t>(O_CLOEXEC));
    f.set_pos(info.pos);
    std::string proc_path = fmt::format("/proc/{}/fd/{}", node_pid_, number);
    std::string path = TRY(sys::read_link(proc_path));
    bool deleted = path.ends_with(" (deleted)");
    if (path.starts_with("pipe:")) {
      f.set_kind(image::OpenFile::STDIO_PIPE);
      f.set_stdio((info.flags & O_ACCMODE) == O_RDONLY ? 0 : 1);
      continue;
    }
    if (deleted || path.starts_with("/memfd:")) {
      std::string name = deleted ? path.substr(0, path.size() - 10) : path;
      image::PrivateFile::Kind kind = kind_of(name);
      f.mutable_ref()->set_where(image::FileRef::PRIVATE);
      f.mutable_ref()->set_private_file(TRY(private_file(c, proc_path, kind, name)));
      path = name;
    }
    struct stat st {};
    if (stat(proc_path.c_str(), &st) != 0) return os_error("stat");
    if (S_ISDIR(st.st_mode)) f.set_kind(image::OpenFile::DIRECTORY);
    if (S_ISCHR(st.st_mode)) f.set_kind(image::OpenFile::DEVICE);
    f.mutable_ref()->set_path(path);
  }
  return {};
}

Result<void> StoppedProgram::copy_process(const image::Process& p, Restorer& to) {
  SpaceTarget target = TRY(to.space(static_cast<std::uint32_t>(p.pid())));
  UniqueFd pagemap = TRY(open_fd(fmt::format("/proc/{}/pagemap", node_pid_), O_RDONLY));
  UniqueFd mem = TRY(open_fd(fmt::format("/proc/{}/mem", node_pid_), O_RDONLY));
  std::vector<char> page(4096);
  for (const image::Vma& v : p.mm().vmas()) {
    if (v.shared() || v.kind() > image::Vma::FILE) continue;
    std::vector<std::uint64_t> entries((v.end() - v.start()) / 4096);
    if (pread(pagemap.get(), entries.data(), entries.size() * 8,
              static_cast<off_t>(v.start() / 4096 * 8)) < 0)
      return os_error("pread(pagemap)");
    for (std::size_t i = 0; i < entries.size(); ++i) {
      constexpr std::uint64_t present_or_swapped = 3ull << 62, of_file = 1ull << 61;
      if ((entries[i] & present_or_swapped) == 0 || (entries[i] & of_file) != 0) continue;
      auto at = static_cast<off_t>(v.start() + i * 4096);
      if (pread(mem.get(), page.data(), 4096, at) != 4096)
        return os_error(fmt::format("pread(mem, {:#x})", at));
      if (pwrite(target.mem_fd, page.data(), 4096, at) != 4096)
        return os_error(fmt::format("pwrite(mem, {:#x})", at));
    }
  }
  return {};
}

Result<void> StoppedProgram::copy_content(const image::Capsule& image, Restorer& to) {
  TRY(copy_process(image.processes(0), to));
  for (const image::PrivateFile& f : image.private_files()) {
    SpaceTarget target = TRY(to.space(f.space()));
    std::vector<char> content(f.size());
    if (pread(content_.at(f.id()).get(), content.data(), content.size(), 0) !=
            static_cast<ssize_t>(content.size()) ||
        pwrite(target.file_fd, content.data(), content.size(), 0) !=
            static_cast<ssize_t>(content.size())) {
      return os_error(fmt::format("content of private file {}", f.id()));
    }
  }
  return {};
}

}  // namespace godwit::restore
