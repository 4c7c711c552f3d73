// godwitd: the daemon of a node. Constructs everything and connects it; nothing is global.
//
// It has no orderly end: whatever ends it, the next one finds all capsules and migrations by their
// records (Host::adopt, Migrations::take_over). So the way that failures take is the way that is
// always taken, and tested by every restart.
// clang-format off: <signal.h> has a macro named as a field of the image.
#include "daemon/service.h"
// clang-format on

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/io.h"
#include "base/log.h"
#include "daemon/config.h"
#include "daemon/history.h"
#include "daemon/host.h"
#include "daemon/migrations.h"
#include "daemon/node_monitor.h"
#include "daemon/peers.h"
#include "daemon/spares.h"
#include "daemon/store.h"
#include "rpc/server.h"

namespace godwit::daemon {
namespace {

constexpr const char* usage =
    "usage: godwitd [--config FILE]\n"
    "The daemon of a godwit node. FILE is /etc/godwit/godwit.toml unless given; "
    "src/daemon/config.h\n"
    "and godwitd(8) list its keys. Stop it by any signal: capsules run on, the next one adopts "
    "them.\n";

Result<void> make_dir(const std::string& path, mode_t mode) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return os_error(fmt::format("mkdir({})", path), error.value());
  if (chmod(path.c_str(), mode) != 0) return os_error(fmt::format("chmod({})", path));
  return {};
}

// Two daemons of one node would both adopt everything.
Result<UniqueFd> lock_node(const NodeEnv& env) {
  const std::string path = env.run_dir + "/godwitd.lock";
  UniqueFd fd = TRY(open_fd(path, O_RDWR | O_CREAT, 0600));
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return make_error(Errc::refused, "another godwitd holds {}", path);
    return os_error(fmt::format("flock({})", path));
  }
  return fd;
}

Result<void> serve(const Config& config, const sigset_t& ending) {
  // The socket's folder is open to all, what lies beside it to root only.
  TRY(make_dir(config.env.run_dir, 0755));
  TRY(make_dir(config.env.run_dir + "/capsules", 0700));
  TRY(make_dir(config.env.run_dir + "/journal", 0700));
  TRY(make_dir(config.env.state_dir, 0755));
  TRY(make_dir(config.env.state_dir + "/capsules", 0755));
  TRY(make_dir(config.env.state_dir + "/grants", 0700));
  const UniqueFd lock = TRY(lock_node(config.env));

  NodeMonitor monitor(config, TRY(boot_incarnation(config.env)));
  auto history = TRY(History::open(config.env.state_dir + "/history.sqlite"));
  auto peers = TRY(Peers::connect(config));
  Spares spares(config.env);
  Host host(config, TRY(Store::open(config.env.run_dir)), spares);
  Migrations migrations(config, host, *peers, *history, monitor, spares);
  Service service(config, host, migrations, *peers, *history, monitor);

  migrations.take_over(TRY(host.adopt()));
  spares.restock();
  std::unique_ptr<rpc::NodeServer> nodes;
  if (!config.listen.empty()) {
    const rpc::TlsFiles tls{config.tls_ca, config.tls_cert, config.tls_key};
    nodes = TRY(rpc::NodeServer::start(config.listen, tls, peers->names(), service, service));
  }
  auto people = TRY(rpc::UnixServer::start(config.socket, service, rpc::UnixLimits()));
  LOG(info, "node {} of cluster {} answers at {}", config.env.node, config.env.cluster,
      config.socket);

  // Samples until a signal asks for the end.
  while (true) {
    const timespec second{1, 0};
    const int signal = sigtimedwait(&ending, nullptr, &second);
    if (signal > 0) {
      LOG(info, "ends by signal {}; capsules run on", signal);
      std::fflush(nullptr);
      _exit(0);
    }
    monitor.sample();
    host.sample();
  }
}

int run(int argc, char** argv) {
  std::string path = "/etc/godwit/godwit.toml";
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--config") == 0 && i + 1 < argc) {
      path = argv[++i];
    } else {
      const bool help = std::strcmp(argv[i], "--help") == 0;
      std::fputs(usage, help ? stdout : stderr);
      return help ? 0 : 2;
    }
  }
  log_init("godwitd", LogLevel::info);
  auto config = load_config(path);
  if (!config.ok()) {
    LOG(error, "configuration: {}", config.error().what());
    return 2;
  }
  log_init("godwitd." + config->env.node.value, config->log_level);
  // Blocked before any thread exists, so that they all inherit it and only the main one waits.
  sigset_t ending;
  sigemptyset(&ending);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&ending, signal);
  pthread_sigmask(SIG_BLOCK, &ending, nullptr);
  signal(SIGPIPE, SIG_IGN);
  auto served = serve(*config, ending);
  LOG(error, "{}", served.error().what());
  return 1;
}

}  // namespace
}  // namespace godwit::daemon

int main(int argc, char** argv) { return godwit::daemon::run(argc, argv); }
