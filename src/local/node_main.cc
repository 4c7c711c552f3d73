// godwit-node: what a local cluster consists of besides godwitd.
//
//   godwit-node switch STATE       holds the network namespace with the switch
//   godwit-node boot STATE NODE    becomes a node: its PID 1
//
// Both are started by the library in local_cluster.cc with these descriptors, and answer on
// `report_fd`: "ok", or why not. Both enter their cgroup first of all and only then let go of the
// cluster's lock, so that whatever dies when, everything that runs is in the cluster's cgroups for
// the next holder of the lock. The process that was started ends as soon as the one that stays has
// been forked off.
//
// PID 1 reaps, and starts godwitd: at boot, and on SIGUSR1 if none runs. It restarts nothing by
// itself: a daemon that died stays dead, visibly, until somebody decides.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "base/clock.h"
#include "base/io.h"
#include "local/helper_fds.h"
#include "local/node_network.h"
#include "local/node_root.h"
#include "local/state.h"
#include "sys/cgroup.h"

namespace godwit::local {
namespace {

constexpr std::int64_t ns_per_s = 1'000'000'000;

void report(const Result<void>& outcome) {
  std::string text = outcome.ok() ? helper_ok : outcome.error().what();
  // The starter may be dead: then nobody needs the answer, and the next command finds us by our
  // cgroup.
  (void)write_full(report_fd, as_bytes(text));
  ::close(report_fd);
}

Result<void> enter_cgroup(const std::string& name) {
  sys::CgroupGroup group = TRY(sys::CgroupGroup::open(name));
  TRY(group.add(::getpid()));
  ::close(lock_fd);
  return {};
}

// Forks; the parent ends. Returns in the child.
Result<void> continue_as_child() {
  pid_t pid = ::fork();
  if (pid < 0) return os_error("fork()");
  if (pid > 0) ::_exit(0);
  ::setsid();
  return {};
}

Result<void> become_switch(const ClusterState& cluster) {
  TRY(enter_cgroup(switch_cgroup(cluster.name)));
  if (::unshare(CLONE_NEWNET) != 0) return os_error("unshare(CLONE_NEWNET)");
  TRY(make_switch());
  TRY(continue_as_child());
  ::prctl(PR_SET_NAME, "godwit-switch");
  return {};
}

// The node's clocks show `uptime_s` when it boots, like those of a machine that has been up that
// long. The offsets hold for children from now on, and are relative to the machine's initial
// namespace.
Result<void> shift_clocks(std::int64_t uptime_s) {
  std::int64_t monotonic = uptime_s - monotonic_ns() / ns_per_s;
  std::int64_t boottime = uptime_s - boottime_ns() / ns_per_s;
  return write_file("/proc/self/timens_offsets",
                    fmt::format("monotonic {} 0\nboottime {} 0\n", monotonic, boottime));
}

Result<void> become_node(const ClusterState& cluster, const NodeState& node) {
  TRY(enter_cgroup(system_cgroup(cluster.name, node.node)));
  int namespaces =
      CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWTIME;
  if (::unshare(namespaces) != 0) return os_error(fmt::format("unshare({:#x})", namespaces));
  TRY(shift_clocks(node.uptime_s));
  TRY(continue_as_child());  // PID 1 from here.
  ::prctl(PR_SET_NAME, "godwit-node");
  TRY(connect_node(cluster, node, switch_netns_fd));
  ::close(switch_netns_fd);
  return enter_node_root(cluster, node);
}

class Init {
 public:
  Init(const ClusterState& cluster, const NodeState& node, UniqueFd log)
      : daemon_path_(cluster.daemon_path), node_(node.node), log_(std::move(log)) {
    ::sigemptyset(&waited_);
    ::sigaddset(&waited_, SIGCHLD);
    ::sigaddset(&waited_, SIGUSR1);
    ::sigprocmask(SIG_BLOCK, &waited_, nullptr);
  }

  Result<void> start_daemon() {
    pid_t pid = ::fork();
    if (pid < 0) return os_error("fork()");
    if (pid == 0) exec_daemon();
    daemon_ = pid;
    return replace_file("/run/godwit/godwitd.pid", fmt::format("{}\n", pid), false);
  }

  [[noreturn]] void loop() {
    while (true) {
      int signal = ::sigwaitinfo(&waited_, nullptr);
      // Who asks has seen that none runs; it may be dying still, and its SIGCHLD be behind.
      if (signal == SIGUSR1) wanted_ = true;
      reap();
      if (wanted_ && daemon_ == 0) {
        wanted_ = false;
        Result<void> started = start_daemon();
        if (!started.ok()) note(fmt::format("can't start godwitd: {}", started.error().what()));
      }
    }
  }

 private:
  [[noreturn]] void exec_daemon() {
    ::setsid();
    ::sigprocmask(SIG_UNBLOCK, &waited_, nullptr);
    int null = ::open("/dev/null", O_RDONLY);
    ::dup2(null, STDIN_FILENO);
    ::dup2(log_.get(), STDOUT_FILENO);
    ::dup2(log_.get(), STDERR_FILENO);
    std::string path = daemon_path_;
    std::string config = "/etc/godwit/godwit.toml";
    std::string flag = "--config";
    char* arguments[] = {path.data(), flag.data(), config.data(), nullptr};
    std::string search = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    std::string home = "HOME=/root";
    std::string language = "LANG=C.UTF-8";
    char* environment[] = {search.data(), home.data(), language.data(), nullptr};
    ::execve(path.c_str(), arguments, environment);
    note(os_error(fmt::format("execve({})", path)).what());
    ::_exit(127);
  }

  void reap() {
    int status = 0;
    while (pid_t pid = ::waitpid(-1, &status, WNOHANG)) {
      if (pid < 0) return;
      if (pid != daemon_) continue;
      daemon_ = 0;
      note(WIFSIGNALED(status) ? fmt::format("godwitd was killed by signal {}", WTERMSIG(status))
                               : fmt::format("godwitd exited with status {}", WEXITSTATUS(status)));
      // Last: whoever sees the file gone may read the log for the reason.
      ::unlink("/run/godwit/godwitd.pid");
    }
  }

  // A log that can't be written (disk full) must not stop a PID 1.
  void note(const std::string& line) {
    (void)write_full(log_.get(), as_bytes(fmt::format("godwit-node {}: {}\n", node_, line)));
  }

  std::string daemon_path_;
  NodeId node_;
  UniqueFd log_;
  sigset_t waited_;
  pid_t daemon_ = 0;
  bool wanted_ = false;
};

Result<void> boot(const ClusterState& cluster, const NodeState& node) {
  // Opened on the machine's side: people there read it, also when the node is gone.
  UniqueFd log =
      TRY(open_fd(daemon_log(cluster.name, node.node), O_WRONLY | O_CREAT | O_APPEND, 0640));
  TRY(become_node(cluster, node));
  Init init(cluster, node, std::move(log));
  TRY(init.start_daemon());
  report({});
  init.loop();
}

Result<void> hold_switch(const ClusterState& cluster) {
  TRY(become_switch(cluster));
  report({});
  while (true) ::pause();
}

Result<void> run(int argc, char** argv) {
  std::string command = argc > 1 ? argv[1] : "";
  if ((command != "switch" || argc != 3) && (command != "boot" || argc != 4))
    return make_error(Errc::invalid,
                      "usage: godwit-node switch STATE | boot STATE NODE; see `godwit local`");
  if (::fcntl(lock_fd, F_GETFD) < 0 || ::fcntl(report_fd, F_GETFD) < 0)
    return make_error(Errc::invalid, "godwit-node is started by `godwit local`, not by hand");
  // What the starter's libraries left open is none of a node's business.
  if (::close_range(switch_netns_fd + 1, ~0U, 0) != 0) return os_error("close_range()");
  for (int fd : {lock_fd, report_fd, switch_netns_fd}) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  ::umask(022);
  ClusterState cluster = TRY(load_state_file(argv[2]));
  if (command == "switch") return hold_switch(cluster);
  return boot(cluster, *TRY(cluster.find(NodeId{argv[3]})));
}

}  // namespace
}  // namespace godwit::local

int main(int argc, char** argv) {
  godwit::Result<void> outcome = godwit::local::run(argc, argv);
  // Only failures come back.
  std::string text = outcome.error().what();
  (void)!::write(STDERR_FILENO, (text + "\n").c_str(), text.size() + 1);
  godwit::local::report(outcome);
  return 1;
}
