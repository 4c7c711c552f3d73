// From a fresh process of the node to PID 1 of a capsule.
//
// The starter is a child of a daemon with threads, executed so that nothing of it is inherited. It
// makes the namespaces, forks the process that is PID 1 in them, waits until that one is ready,
// says its pid and ends; so PID 1 belongs to the node's own init and outlives the daemon. The very
// first thing that it does is to enter the capsule's control groups: whatever exists of a capsule
// is found there by `destroy`, and once these are gone a starter that was slow can't enter them and
// ends.
//
// Control groups: the cgroup namespace gets the group of its maker for its root, which shall be the
// tree's. So the starter joins the tree's groups, makes the namespace, and PID 1 later steps out of
// both: into the `init` groups (the freezer must not stop it) and the node's namespace (where
// cgroup2 is mounted with nsdelegate, entering a group outside of the own namespace is forbidden).
#include "capsule/init/starter.h"

#include <fcntl.h>
#include <linux/keyctl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "capsule/init/server.h"
#include "capsule/init_protocol.h"

namespace godwit::init {
namespace {

// Leaving the tree's groups for the init ones, from within PID 1.
struct InitGroups {
  int processes[2];  // cgroup.procs: for both threads.
  int process_count = 0;
  int threads[cgroups_max];  // tasks: for the first thread, the forker stays.
  int thread_count = 0;
  int node_namespace = -1;
};

void report(int fd, const Fail& failure) {
  char text[256];
  int length = std::snprintf(text, sizeof(text), "error %s: %s\n", failure.what,
                             std::strerror(failure.number));
  // The reader may be gone; then nobody wants to know.
  ssize_t ignored = ::write(fd, text, static_cast<std::size_t>(length));
  static_cast<void>(ignored);
}

int open_in(const char* group, const char* file) {
  char path[4096];
  int length = std::snprintf(path, sizeof(path), "%s/%s", group, file);
  if (length >= static_cast<int>(sizeof(path))) {
    errno = ENAMETOOLONG;
    return -1;
  }
  return ::open(path, O_WRONLY | O_CLOEXEC);
}

bool enter(int group) { return ::write(group, "0", 1) == 1; }

Fail join_groups(const StartOrder& order, TreeEntrance& tree, InitGroups& init) {
  if (order.tree_v2 != nullptr) {
    tree.v2_procs = open_in(order.tree_v2, "cgroup.procs");
    tree.v2_directory = ::open(order.tree_v2, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int leave = open_in(order.init_v2, "cgroup.procs");
    if (tree.v2_procs < 0 || tree.v2_directory < 0 || leave < 0)
      return fail("open a v2 control group");
    init.processes[init.process_count++] = leave;
    if (!enter(tree.v2_procs)) return fail("enter a v2 control group");
  }
  if (order.tree_freezer != nullptr) {
    tree.freezer_procs = open_in(order.tree_freezer, "cgroup.procs");
    int leave = open_in(order.init_freezer, "cgroup.procs");
    if (tree.freezer_procs < 0 || leave < 0) return fail("open a v1 freezer");
    init.processes[init.process_count++] = leave;
    if (!enter(tree.freezer_procs)) return fail("enter a v1 freezer");
  }
  for (int i = 0; i < order.tree_v1_count; ++i) {
    int join = open_in(order.tree_v1[i], "cgroup.procs");
    int leave = open_in(order.init_v1[i], "tasks");
    if (join < 0 || leave < 0) return fail("open a v1 control group");
    init.threads[init.thread_count++] = leave;
    if (!enter(join)) return fail("enter a v1 control group");
    ::close(join);
  }
  return ok();
}

Fail make_namespaces(TreeEntrance& tree, InitGroups& init) {
  init.node_namespace = ::open("/proc/self/ns/cgroup", O_RDONLY | O_CLOEXEC);
  if (init.node_namespace < 0) return fail("open(ns/cgroup)");
  if (::unshare(CLONE_NEWCGROUP) != 0) return fail("unshare(CLONE_NEWCGROUP)");
  tree.cgroup_namespace = ::open("/proc/self/ns/cgroup", O_RDONLY | O_CLOEXEC);
  if (tree.cgroup_namespace < 0) return fail("open(ns/cgroup)");
  if (::unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWPID) != 0)
    return fail("unshare of namespaces");
  return ok();
}

// A socket's path has at most 107 bytes; through the directory's descriptor the length doesn't
// matter.
Fail bind_socket(const char* run_dir, int& listener) {
  int directory = ::open(run_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return fail("open of the run directory");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/init.sock",
                directory);
  listener = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listener < 0) return fail("socket");
  ::umask(0177);
  Fail bound;
  if (::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    bound = fail("bind(init.sock)");
  ::umask(0);
  ::close(directory);
  return bound;
}

Fail loopback_up() {
  int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return fail("socket");
  ifreq request{};
  std::strcpy(request.ifr_name, "lo");
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  Fail result = ::ioctl(fd, SIOCSIFFLAGS, &request) == 0 ? ok() : fail("set lo up");
  ::close(fd);
  return result;
}

Fail set_sysctl(const char* path, const char* value) {
  int fd = ::open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT ? ok() : fail("open of a sysctl");  // ENOENT: no IPv6.
  Fail result = ::write(fd, value, std::strlen(value)) == static_cast<ssize_t>(std::strlen(value))
                    ? ok()
                    : fail("write of a sysctl");
  ::close(fd);
  return result;
}

Fail set_network() {
  // A link would send (solicitations, reports) as soon as it is up, in the name of an address that
  // may still be in use on the node where the capsule comes from.
  CHECK(set_sysctl("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1"));
  // What waits in connections is moved while the program stands: sizes that grow by themselves end
  // at 1 MiB, less than a millisecond each. What a program sets itself isn't limited by this.
  CHECK(set_sysctl("/proc/sys/net/ipv4/tcp_rmem", "4096 131072 1048576"));
  return set_sysctl("/proc/sys/net/ipv4/tcp_wmem", "4096 16384 1048576");
}

// An out-of-memory kill must not hit PID 1 before the program: that would kill both.
void protect_from_oom(TreeEntrance& tree) {
  FILE* file = std::fopen("/proc/self/oom_score_adj", "r+e");
  if (file == nullptr) return;
  if (std::fscanf(file, "%d", &tree.oom_score_adj) == 1) {
    std::rewind(file);
    // Without CAP_SYS_RESOURCE this is refused: then init stands as high as any process its size.
    std::fprintf(file, "-900");
  }
  std::fclose(file);
}

Fail leave_tree(const InitGroups& init) {
  for (int i = 0; i < init.process_count; ++i) {
    if (!enter(init.processes[i])) return fail("enter the init control group");
    ::close(init.processes[i]);
  }
  for (int i = 0; i < init.thread_count; ++i) {
    if (!enter(init.threads[i])) return fail("enter the init control group");
    ::close(init.threads[i]);
  }
  if (::setns(init.node_namespace, CLONE_NEWCGROUP) != 0) return fail("setns(CLONE_NEWCGROUP)");
  ::close(init.node_namespace);
  return ok();
}

Fail prepare(const StartOrder& order, int listener, const InitGroups& init, TreeEntrance& tree) {
  if (::setsid() < 0) return fail("setsid");
  // Without a name it is a spare, until its capsule is known (State::hostname).
  const bool spare = order.hostname[0] == 0;
  ::prctl(PR_SET_NAME, spare ? "godwit-spare" : "godwit-init");
  CHECK(mount_private(order));
  // Empty and the capsule's own, so that no key of the node's session is reachable from it. Kernels
  // without keys have nothing to keep apart.
  if (::syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, nullptr) < 0 && errno != ENOSYS)
    return fail("keyctl(KEYCTL_JOIN_SESSION_KEYRING)");
  if (::sethostname(order.hostname, std::strlen(order.hostname)) != 0) return fail("sethostname");
  CHECK(loopback_up());
  CHECK(set_network());
  // Read from a signalfd by the first thread: the forker must inherit it blocked, or it would take
  // it.
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  if (::sigprocmask(SIG_SETMASK, &child, nullptr) != 0) return fail("sigprocmask");
  CHECK(start_forker());
  CHECK(leave_tree(init));
  protect_from_oom(tree);
  if (::chdir("/") != 0) return fail("chdir(/)");
  // Here, not in the starter: who connects learns the pid of whoever called listen.
  if (::listen(listener, capsule::clients_max) != 0) return fail("listen");
  return ok();
}

Fail run(const StartOrder& order) {
  TreeEntrance tree;
  InitGroups init;
  int listener = -1;
  CHECK(join_groups(order, tree, init));
  CHECK(bind_socket(order.run_dir, listener));
  CHECK(make_namespaces(tree, init));
  int ready[2];
  if (::pipe2(ready, O_CLOEXEC) != 0) return fail("pipe2");
  pid_t child = ::fork();
  if (child < 0) return fail("fork");
  if (child == 0) {
    ::close(ready[0]);
    Fail prepared = prepare(order, listener, init, tree);
    if (prepared.failed()) {
      report(order.report, prepared);
      ::_exit(1);
    }
    ::close(order.report);
    char byte = 1;
    // The starter was killed: destroy finds us by our group.
    if (::write(ready[1], &byte, 1) != 1) ::_exit(1);
    ::close(ready[1]);
    serve(listener, tree);
  }
  ::close(ready[1]);
  char byte;
  ssize_t n;
  do {
    n = ::read(ready[0], &byte, 1);
  } while (n < 0 && errno == EINTR);
  if (n != 1) ::_exit(1);  // It has reported why.
  char text[32];
  int length = std::snprintf(text, sizeof(text), "pid %d\n", child);
  return ::write(order.report, text, static_cast<std::size_t>(length)) == length ? ok()
                                                                                 : fail("report");
}

}  // namespace

int start(const StartOrder& order) {
  ::syscall(SYS_close_range, order.report + 1, ~0U, 0);
  ::fcntl(order.report, F_SETFD, FD_CLOEXEC);
  // Writing to a pipe whose reader was killed is an error to return, not a signal.
  ::signal(SIGPIPE, SIG_IGN);
  Fail result = run(order);
  if (!result.failed()) return 0;
  report(order.report, result);
  return 1;
}

}  // namespace godwit::init
