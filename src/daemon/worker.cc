#include "daemon/worker.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "migrate/commit_record.h"

namespace godwit::daemon {
namespace {

// Longest silence of a worker with a short order; the orders' own waits are bounded below this.
constexpr std::int64_t short_order_ms_max = 60'000;

// posix_spawn: executes from a threaded process without copying page tables, and what the child
// does before exec is the C library's, so no lock of ours can be held there.
Result<pid_t> spawn(const std::string& path, int channel) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, channel, migrate::worker_fd);
  posix_spawn_file_actions_addclosefrom_np(&actions, migrate::worker_fd + 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  // A session of its own: signals to the daemon's group aren't for it.
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
  char* const argv[] = {const_cast<char*>("godwit-worker"), nullptr};
  // Symbols are looked up before an order comes, not at the first call of each function.
  std::string bind_now = "LD_BIND_NOW=1";
  std::vector<char*> environment = {bind_now.data()};
  for (char** variable = environ; *variable != nullptr; ++variable)
    environment.push_back(*variable);
  environment.push_back(nullptr);
  pid_t pid = 0;
  const int error =
      posix_spawn(&pid, path.c_str(), &actions, &attributes, argv, environment.data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return os_error(fmt::format("posix_spawn({})", path), error);
  return pid;
}

}  // namespace

wire::WorkerEnv worker_env(const NodeEnv& env) {
  wire::WorkerEnv out;
  out.set_node(env.node.value);
  out.set_cluster(env.cluster);
  out.set_run_dir(env.run_dir);
  out.set_state_dir(env.state_dir);
  out.set_cgroup_base(env.cgroup_base);
  out.set_bridge(env.bridge);
  out.set_libexec_dir(env.libexec_dir);
  return out;
}

void note_worker(node::CapsuleRecord& record, const Worker& worker) {
  record.set_worker_pid(worker.pid());
  auto ticks = migrate::process_start_ticks(worker.pid());
  if (ticks.ok()) record.set_worker_start_ticks(*ticks);
}

Result<std::unique_ptr<Worker>> Worker::launch(const NodeEnv& env) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return os_error("socketpair");
  UniqueFd ours(pair[0]);
  UniqueFd theirs(pair[1]);
  if (theirs.get() == migrate::worker_fd) {
    // dup2 onto itself would leave close-on-exec set.
    const int moved = fcntl(theirs.get(), F_DUPFD_CLOEXEC, migrate::worker_fd + 1);
    if (moved < 0) return os_error("fcntl(F_DUPFD_CLOEXEC)");
    theirs.reset(moved);
  }
  const pid_t pid = TRY(spawn(env.libexec_dir + "/godwit-worker", theirs.get()));
  // It can't be reaped before we do it, so the pid is still this process.
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) return os_error(fmt::format("pidfd_open(pid={})", pid));
  return std::unique_ptr<Worker>(new Worker(pid, std::move(pidfd), std::move(ours)));
}

Result<void> Worker::send(const NodeEnv& env, wire::WorkerOrder& order) {
  *order.mutable_env() = worker_env(env);
  return channel_.send(order);
}

Result<std::unique_ptr<Worker>> Worker::start(const NodeEnv& env, wire::WorkerOrder order) {
  auto worker = TRY(launch(env));
  if (auto sent = worker->send(env, order); !sent.ok()) {
    worker->kill();
    worker->wait_end();
    return std::move(sent).error().with("order to the worker");
  }
  return worker;
}

bool Worker::ended() const {
  pollfd end{pidfd_.get(), POLLIN, 0};
  return ::poll(&end, 1, 0) > 0;
}

Worker::~Worker() { waitpid(pid_, nullptr, WNOHANG); }

Result<wire::WorkerEvent> Worker::next_event(std::int64_t timeout_ms) {
  wire::WorkerEvent event;
  TRY(channel_.receive(event, timeout_ms));
  return event;
}

Result<wire::Report> Worker::finish(const std::function<void(const wire::Progress&)>& progress,
                                    std::int64_t silence_ms_max) {
  while (true) {
    wire::WorkerEvent event = TRY(next_event(silence_ms_max).with("worker"));
    if (event.has_done()) return event.done();
    if (event.has_progress() && progress) progress(event.progress());
  }
}

void Worker::kill() {
  if (syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH) {
    LOG(error, "{}", os_error(fmt::format("pidfd_send_signal(pid={})", pid_)).what());
  }
}

void Worker::wait_end() {
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

Result<wire::Report> execute(const NodeEnv& env, wire::WorkerOrder order) {
  return finish_short(*TRY(Worker::start(env, std::move(order))));
}

Result<wire::Report> finish_short(Worker& worker) {
  auto report = worker.finish({}, short_order_ms_max);
  if (!report.ok()) worker.kill();
  worker.wait_end();
  if (!report.ok()) return std::move(report).error();
  if (report->outcome() != wire::Report::DONE) {
    return make_error(Errc::refused, "{}", report->reason());
  }
  return report;
}

}  // namespace godwit::daemon
