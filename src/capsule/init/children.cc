// Children are made by a raw clone3: with a chosen pid where one is asked for, with a pidfd that
// can't miss the child, and, in the v2 hierarchy, already inside the tree's control group.
//
// v1 has no such thing, and a write to cgroup.procs waits for a grace period of RCU (10 ms, more
// than all the rest of a small migration). But a v1 group can hold single threads, and a child is
// born into those of the thread that makes it: so init has a second thread, the forker, which stays
// behind in the tree's v1 groups when the first one leaves them, and makes all children (0.3 ms).
// Not in a v1 freezer: that would freeze it with the tree; there the child enters by itself. Its
// number is always 2, on every node, so it is in nobody's way; threads don't show in the capsule's
// /proc.
//
// A process with two threads can't enter a time namespace, but its child, which has one, can.
#include "capsule/init/children.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace godwit::init {
namespace {

constexpr int child_ms_max = 60'000;      // A slow file system may have to find the program first.
constexpr int oom_score_adj_most = 1000;  // OOM_SCORE_ADJ_MAX

constexpr std::size_t forker_stack_bytes = 256 * 1024;

struct ChildReport {
  int number;
  char what[60];
};

long clone_child(const TreeEntrance& tree, pid_t wanted, bool into_cgroup, int& pidfd) {
  clone_args args{};
  args.flags = CLONE_PIDFD | (into_cgroup ? CLONE_INTO_CGROUP : 0);
  args.pidfd = reinterpret_cast<std::uint64_t>(&pidfd);
  args.exit_signal = SIGCHLD;
  args.cgroup = into_cgroup ? static_cast<std::uint64_t>(tree.v2_directory) : 0;
  if (wanted > 0) {
    args.set_tid = reinterpret_cast<std::uint64_t>(&wanted);
    args.set_tid_size = 1;
  }
  return ::syscall(SYS_clone3, &args, sizeof(args));
}

bool join(int procs) { return procs < 0 || ::write(procs, "0", 1) == 1; }

// Of ourselves. Where it can't be told nothing is lost but a preference.
Fail set_oom_score_adj(int value) {
  int fd = ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return ok();
  char text[16];
  int length = std::snprintf(text, sizeof(text), "%d", value);
  bool written = ::write(fd, text, static_cast<std::size_t>(length)) == length;
  ::close(fd);
  return written ? ok() : fail("write of oom_score_adj");
}

// In the child, first of all.
Fail enter_tree(const TreeEntrance& tree, bool in_v2) {
  if (!in_v2 && !join(tree.v2_procs)) return fail("enter the v2 control group");
  if (!join(tree.freezer_procs)) return fail("enter the v1 freezer");
  if (tree.cgroup_namespace >= 0 && ::setns(tree.cgroup_namespace, CLONE_NEWCGROUP) != 0)
    return fail("enter the cgroup namespace");
  if (tree.time_namespace >= 0 && ::setns(tree.time_namespace, CLONE_NEWTIME) != 0)
    return fail("enter the time namespace");
  return set_oom_score_adj(tree.oom_score_adj);
}

void reset_signals() {
  // Also those that libc keeps for itself, and whose handlers it doesn't let us set: posix_spawn
  // leaves them ignored in whatever it starts.
  const std::uint64_t standard[4] = {};  // The kernel's struct sigaction: SIG_DFL.
  for (int signal = 1; signal <= 64; ++signal)
    if (signal != SIGKILL && signal != SIGSTOP)
      ::syscall(SYS_rt_sigaction, signal, standard, nullptr, sizeof(std::uint64_t));
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

enum class Side { parent, child };

// Fails in the parent only.
Fail fork_into_tree(const TreeEntrance& tree, pid_t wanted, Child& out, Side& side, bool& in_v2) {
  in_v2 = tree.v2_directory >= 0;
  long pid = clone_child(tree, wanted, in_v2, out.pidfd);
  // EINVAL: before 5.7. Others: a mount that forbids moving across namespaces.
  if (pid < 0 && in_v2 && errno != EEXIST && errno != EAGAIN && errno != ENOMEM) {
    in_v2 = false;
    pid = clone_child(tree, wanted, in_v2, out.pidfd);
  }
  if (pid < 0) return fail(wanted > 0 ? "clone3 with a chosen pid" : "clone3");
  out.pid = static_cast<pid_t>(pid);
  side = pid == 0 ? Side::child : Side::parent;
  return ok();
}

[[noreturn]] void report_and_die(int pipe, const Fail& failure) {
  ChildReport report{failure.number, {}};
  std::snprintf(report.what, sizeof(report.what), "%s", failure.what);
  // If this write fails as well, the end of the pipe says that we died.
  ssize_t ignored = ::write(pipe, &report, sizeof(report));
  static_cast<void>(ignored);
  ::_exit(127);
}

Fail become_program(const SpawnOrder& order, const Relay& relay) {
  if (::setsid() < 0) return fail("setsid");
  for (int number = 0; number < 3; ++number)
    if (::dup2(relay.program_end(number), number) < 0) return fail("dup2 of stdio");
  if (order.head.tty != 0) {
    if (::ioctl(0, TIOCSCTTY, 0) != 0) return fail("ioctl(TIOCSCTTY)");
    // The terminal belongs to its user, as with any login.
    if (::fchown(0, order.head.uid, static_cast<gid_t>(-1)) != 0)
      return fail("fchown of the terminal");
  } else {
    // Else the program could use its pipes but not open them as /dev/stdout.
    for (int number = 0; number < 3; ++number)
      if (::fchown(number, order.head.uid, order.head.gid) != 0) return fail("fchown of stdio");
  }
  if (::setgroups(order.head.groups, order.groups) != 0) return fail("setgroups");
  if (::setresgid(order.head.gid, order.head.gid, order.head.gid) != 0) return fail("setresgid");
  if (::setresuid(order.head.uid, order.head.uid, order.head.uid) != 0) return fail("setresuid");
  if (::chdir(order.cwd) != 0) return fail("chdir");
  ::umask(022);
  reset_signals();
  // All of init's descriptors are close-on-exec already; this is the second lock on the door.
  if (::syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC) != 0) return fail("close_range");
  ::environ = order.env;
  ::execvp(order.argv[0], order.argv);
  return fail("exec");
}

// The child closes its end of the pipe once it is what it shall be, or reports first why it isn't.
// A failed child is reaped here; the main loop never hears of it.
Fail await_child(int (&pipe)[2], Child& child) {
  static ChildReport report;
  ::close(pipe[1]);
  pollfd ready{pipe[0], POLLIN, 0};
  int polled;
  do {
    polled = ::poll(&ready, 1, child_ms_max);
  } while (polled < 0 && errno == EINTR);
  ssize_t n = polled > 0 ? ::read(pipe[0], &report, sizeof(report)) : -1;
  ::close(pipe[0]);
  // Also if it was killed before it could be executed: an exit like any other.
  if (n == 0) return ok();
  if (n != static_cast<ssize_t>(sizeof(report))) {
    ::kill(child.pid, SIGKILL);
    report = {ETIMEDOUT, "the child doesn't get ready"};
  }
  while (::waitpid(child.pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  ::close(child.pidfd);
  child = {};
  return fail(report.what, report.number);
}

void close_pair(const int (&pair)[2]) {
  ::close(pair[0]);
  ::close(pair[1]);
}

[[noreturn]] void be_skeleton(int report, int channel) {
  reset_signals();
  // The report's end last: closing it says that the rest is done.
  for (int fd = 0; fd < std::max(report, channel); ++fd)
    if (fd != report && fd != channel) ::close(fd);
  ::syscall(SYS_close_range, std::max(report, channel) + 1, ~0U, 0);
  ::fcntl(channel, F_SETFD, 0);
  ::close(report);
  while (true) ::pause();
}

Fail write_offsets(const ClockBase& base, const capsule::ClockDelta& delta) {
  int fd = ::open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return fail("open(timens_offsets)");
  constexpr std::int64_t second_ns = 1'000'000'000;
  auto floor_s = [](std::int64_t ns) { return ns / second_ns - (ns % second_ns < 0 ? 1 : 0); };
  std::int64_t mono = base.monotonic_ns + delta.monotonic_ns;
  std::int64_t boot = base.boottime_ns + delta.boottime_ns;
  char text[160];
  int length = std::snprintf(text, sizeof(text), "monotonic %lld %lld\nboottime %lld %lld\n",
                             static_cast<long long>(floor_s(mono)),
                             static_cast<long long>(mono - floor_s(mono) * second_ns),
                             static_cast<long long>(floor_s(boot)),
                             static_cast<long long>(boot - floor_s(boot) * second_ns));
  ssize_t n = ::write(fd, text, static_cast<std::size_t>(length));
  Fail result = n == length ? ok() : fail("write of timens_offsets");
  ::close(fd);
  return result;
}

Fail spawn_main_here(const TreeEntrance& tree, const SpawnOrder& order, const Relay& relay,
                     Child& out) {
  int report[2];
  if (::pipe2(report, O_CLOEXEC) != 0) return fail("pipe2");
  Side side = Side::parent;
  bool in_v2 = false;
  Fail made = fork_into_tree(tree, 0, out, side, in_v2);
  if (made.failed()) {
    close_pair(report);
    return made;
  }
  if (side == Side::child) {
    Fail entered = enter_tree(tree, in_v2);
    report_and_die(report[1], entered.failed() ? entered : become_program(order, relay));
  }
  return await_child(report, out);
}

Fail make_skeleton_here(const TreeEntrance& tree, pid_t pid, Child& out, int& channel,
                        int& channel_remote) {
  int pair[2];
  int report[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return fail("socketpair");
  if (::pipe2(report, O_CLOEXEC) != 0) {
    Fail failure = fail("pipe2");
    close_pair(pair);
    return failure;
  }
  Side side = Side::parent;
  bool in_v2 = false;
  Fail made = fork_into_tree(tree, pid, out, side, in_v2);
  if (side == Side::child) {
    Fail entered = enter_tree(tree, in_v2);
    // A copy that has not started is what this node can best do without, should its memory run out:
    // the program goes on at its source. The restore sets the program's own value.
    if (!entered.failed()) entered = set_oom_score_adj(oom_score_adj_most);
    if (entered.failed()) report_and_die(report[1], entered);
    be_skeleton(report[1], pair[1]);
  }
  if (made.failed()) {
    close_pair(report);
  } else {
    made = await_child(report, out);
  }
  ::close(pair[1]);
  if (made.failed()) {
    ::close(pair[0]);
    return made;
  }
  channel = pair[0];
  channel_remote = pair[1];
  return ok();
}

// One call at a time: the first thread waits for its end.
struct Forker {
  sem_t wanted;
  sem_t done;
  void (*call)(void*);
  void* argument;
};
Forker forker;

void* run_forker(void*) {
  while (true) {
    while (::sem_wait(&forker.wanted) != 0) {
    }
    forker.call(forker.argument);
    ::sem_post(&forker.done);
  }
}

template <typename Call>
Fail on_forker(Call call) {
  struct Job {
    Call call;
    Fail result;
  } job{call, {}};
  forker.call = [](void* argument) {
    Job* wanted = static_cast<Job*>(argument);
    wanted->result = wanted->call();
  };
  forker.argument = &job;
  ::sem_post(&forker.wanted);
  while (::sem_wait(&forker.done) != 0) {
  }
  return job.result;
}

}  // namespace

Fail start_forker() {
  pthread_attr_t attributes;
  pthread_t thread;
  int error = ::sem_init(&forker.wanted, 0, 0) | ::sem_init(&forker.done, 0, 0);
  if (error != 0) return fail("sem_init");
  error = ::pthread_attr_init(&attributes);
  if (error == 0) error = ::pthread_attr_setstacksize(&attributes, forker_stack_bytes);
  if (error == 0) error = ::pthread_create(&thread, &attributes, run_forker, nullptr);
  return error == 0 ? ok() : fail("pthread_create", error);
}

Fail spawn_main(const TreeEntrance& tree, const SpawnOrder& order, const Relay& relay, Child& out) {
  return on_forker([&] { return spawn_main_here(tree, order, relay, out); });
}

Fail make_skeleton(const TreeEntrance& tree, pid_t pid, Child& out, int& channel,
                   int& channel_remote) {
  return on_forker([&] { return make_skeleton_here(tree, pid, out, channel, channel_remote); });
}

Fail read_clock_base(ClockBase& out) {
  int fd = ::open("/proc/self/timens_offsets", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail("open(timens_offsets)");
  char text[256];
  ssize_t n = ::read(fd, text, sizeof(text) - 1);
  Fail result = n > 0 ? ok() : fail("read of timens_offsets");
  ::close(fd);
  if (result.failed()) return result;
  text[n] = 0;
  long long mono_s, mono_ns, boot_s, boot_ns;
  if (std::sscanf(text, "monotonic %lld %lld boottime %lld %lld", &mono_s, &mono_ns, &boot_s,
                  &boot_ns) != 4)
    return fail("timens_offsets isn't as expected", EINVAL);
  out = {mono_s * 1'000'000'000 + mono_ns, boot_s * 1'000'000'000 + boot_ns};
  return ok();
}

Fail new_clocks(const ClockBase& base, const capsule::ClockDelta& delta, TreeEntrance& tree) {
  if (::unshare(CLONE_NEWTIME) != 0) return fail("unshare(CLONE_NEWTIME)");
  CHECK(write_offsets(base, delta));
  int fd = ::open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail("open(ns/time_for_children)");
  if (tree.time_namespace >= 0) ::close(tree.time_namespace);
  tree.time_namespace = fd;
  return ok();
}

}  // namespace godwit::init
