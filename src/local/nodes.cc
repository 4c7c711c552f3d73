#include "local/nodes.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <filesystem>
#include <chrono>
#include <sstream>
#include <thread>

#include "base/clock.h"
#include "base/io.h"
#include "local/helper_fds.h"
#include "local/local_cluster.h"
#include "sys/cgroup.h"

namespace godwit::local {
namespace {

constexpr std::int64_t boot_us_max = 30'000'000;
constexpr std::chrono::milliseconds poll_step{5};
constexpr std::size_t log_tail_bytes = 2000;

// Duplicated above the numbers that the helper is given them as: no dup2 can hit a source.
Result<UniqueFd> parked(int fd) {
  int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 16);
  if (copy < 0) return os_error(fmt::format("fcntl(F_DUPFD_CLOEXEC, {})", fd));
  return UniqueFd(copy);
}

Result<Launch> launch(std::vector<std::string> arguments, const ClusterLock& lock, int netns_fd,
                      const std::string& what) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return os_error("pipe2()");
  UniqueFd answer(ends[0]);
  UniqueFd report(ends[1]);
  UniqueFd null = TRY(open_fd("/dev/null", O_RDWR));
  const std::pair<UniqueFd, int> passed[] = {
      {TRY(parked(null.get())), STDIN_FILENO},
      {TRY(parked(null.get())), STDOUT_FILENO},
      {TRY(parked(null.get())), STDERR_FILENO},
      {TRY(parked(lock.fd())), lock_fd},
      {TRY(parked(report.get())), report_fd},
      {TRY(parked(netns_fd < 0 ? null.get() : netns_fd)), switch_netns_fd}};
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  for (const auto& [from, to] : passed)
    ::posix_spawn_file_actions_adddup2(&actions, from.get(), to);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  int error = ::posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return os_error(fmt::format("posix_spawn({})", arguments[0]), error);
  return Launch{what, pid, std::move(answer)};
}

Result<std::string> read_answer(int fd, const std::string& what) {
  std::int64_t deadline_us = monotonic_us() + boot_us_max;
  std::string text;
  while (true) {
    std::int64_t left_us = deadline_us - monotonic_us();
    if (left_us <= 0)
      return make_error(Errc::timeout, "{}: no answer in {} s", what, boot_us_max / 1'000'000);
    pollfd ready{fd, POLLIN, 0};
    int n = ::poll(&ready, 1, static_cast<int>(left_us / 1000 + 1));
    if (n < 0 && errno != EINTR) return os_error("poll()");
    if (n <= 0) continue;
    char buffer[1024];
    ssize_t got = ::read(fd, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return os_error("read(answer)");
    if (got == 0) return text;
    text.append(buffer, static_cast<std::size_t>(got));
  }
}

// The process of this cgroup whose pid in its own PID namespace is `inner`.
pid_t pid_by_inner(const std::string& cgroup, pid_t inner) {
  Result<sys::CgroupGroup> group = sys::CgroupGroup::open(cgroup);
  if (!group.ok()) return 0;
  Result<std::vector<pid_t>> pids = group->pids();
  if (!pids.ok()) return 0;
  for (pid_t pid : *pids) {
    Result<std::string> status = read_file(fmt::format("/proc/{}/status", pid));
    if (!status.ok()) continue;  // Ended just now.
    std::size_t at = status->find("\nNSpid:");
    if (at == std::string::npos) continue;
    std::istringstream numbers(status->substr(at + 7, status->find('\n', at + 1) - at - 7));
    pid_t last = 0;
    int levels = 0;
    for (pid_t each = 0; numbers >> each; ++levels) last = each;
    if (levels > 1 && last == inner) return pid;
  }
  return 0;
}

std::string log_tail(const std::string& path) {
  Result<std::string> text = read_file(path);
  if (!text.ok()) return "(no log)";
  if (text->size() > log_tail_bytes) return text->substr(text->size() - log_tail_bytes);
  return *text;
}

Result<void> make_cgroups(const ClusterState& cluster, const NodeState& node) {
  // The leaf first: passing v2's controllers down to it makes those files that limits are set by.
  TRY(sys::CgroupGroup::create(system_cgroup(cluster.name, node.node)));
  sys::CgroupGroup group = TRY(sys::CgroupGroup::open(node_cgroup(cluster.name, node.node)));
  if (node.cores > 0) TRY(group.set_cpu_quota(node.cores * node.speed));
  if (node.memory_bytes > 0) TRY(group.set_memory_limit(node.memory_bytes));
  return {};
}

}  // namespace

Result<Launch> launch_switch(const ClusterState& cluster, const ClusterLock& lock) {
  TRY(sys::CgroupGroup::create(switch_cgroup(cluster.name)));
  return launch({cluster.helper_path, "switch", state_file(cluster.name)}, lock, -1, "switch");
}

Result<Launch> launch_node(const ClusterState& cluster, const NodeState& node,
                           const ClusterLock& lock) {
  TRY(make_cgroups(cluster, node).with(node.node.value));
  std::string directory = node_run_dir(cluster.name, node.node);
  TRY(make_dirs(directory));
  TRY(remove_contents(directory));
  UniqueFd netns = TRY(switch_netns(cluster.name));
  return launch({cluster.helper_path, "boot", state_file(cluster.name), node.node.value}, lock,
                netns.get(), node.node.value);
}

Result<void> finish_launch(Launch launch) {
  Result<std::string> answer = read_answer(launch.answer.get(), launch.what);
  // It ends as soon as it has forked; after a timeout it may hang, and is killed with its cgroup.
  int status = 0;
  while (::waitpid(launch.pid, &status, answer.ok() ? 0 : WNOHANG) < 0 && errno == EINTR) {
  }
  std::string text = TRY(std::move(answer));
  if (text == helper_ok) return {};
  if (text.empty())
    return make_error(Errc::internal, "{}: godwit-node died while starting", launch.what);
  return make_error(Errc::internal, "{}: {}", launch.what, text);
}

pid_t switch_pid(const std::string& cluster) {
  Result<sys::CgroupGroup> group = sys::CgroupGroup::open(switch_cgroup(cluster));
  if (!group.ok()) return 0;
  Result<std::vector<pid_t>> pids = group->pids();
  return pids.ok() && !pids->empty() ? pids->front() : 0;
}

pid_t init_pid(const std::string& cluster, const NodeId& node) {
  return pid_by_inner(system_cgroup(cluster, node), 1);
}

pid_t daemon_pid(const std::string& cluster, const NodeId& node) {
  Result<std::string> text = read_file(node_run_dir(cluster, node) + "/godwitd.pid");
  if (!text.ok()) return 0;
  pid_t inner = 0;
  auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), inner);
  if (error != std::errc{} || inner <= 1) return 0;
  return pid_by_inner(system_cgroup(cluster, node), inner);
}

Result<UniqueFd> switch_netns(const std::string& cluster) {
  pid_t pid = switch_pid(cluster);
  if (pid == 0) return make_error(Errc::not_found, "the switch of cluster {} doesn't run", cluster);
  return sys::open_netns(pid);
}

Result<UniqueFd> node_netns(const std::string& cluster, const NodeId& node) {
  pid_t pid = init_pid(cluster, node);
  if (pid == 0)
    return make_error(Errc::not_found, "node {} of cluster {} doesn't run", node, cluster);
  return sys::open_netns(pid);
}

bool daemon_answers(const std::string& cluster, const NodeId& node) {
  std::string path = daemon_socket(cluster, node);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return false;
  path.copy(address.sun_path, path.size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return fd.valid() &&
         ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
}

Result<void> await_daemon(const ClusterState& cluster, const NodeId& node) {
  std::string what = fmt::format("godwitd of {}", node);
  return wait_for(what, cluster.ready_timeout_us, [&]() -> Result<bool> {
    if (daemon_answers(cluster.name, node)) return true;
    if (daemon_pid(cluster.name, node) != 0) return false;
    // The node's PID 1 writes the reason to the log, then removes the file.
    bool reason_to_come =
        std::filesystem::exists(node_run_dir(cluster.name, node) + "/godwitd.pid");
    if (reason_to_come && init_pid(cluster.name, node) != 0) return false;
    return make_error(Errc::internal, "{} has ended; the end of its log:\n{}", what,
                      log_tail(daemon_log(cluster.name, node)));
  });
}

Result<void> wait_for(const std::string& what, std::int64_t timeout_us,
                      const std::function<Result<bool>()>& done) {
  std::int64_t deadline_us = monotonic_us() + timeout_us;
  while (!TRY(done())) {
    if (monotonic_us() > deadline_us)
      return make_error(Errc::timeout, "{}: not ready in {} s", what, timeout_us / 1'000'000);
    std::this_thread::sleep_for(poll_step);
  }
  return {};
}

}  // namespace godwit::local
