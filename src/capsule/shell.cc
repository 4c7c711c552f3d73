// Making and removing capsules' shells.
//
// Order, and why a crash at any point leaves nothing that can't be removed: the run directory is
// made first and removed last, so a shell of which anything exists is listed there; every other
// name (groups, link, directories) follows from the id. Processes are found by their control
// groups, which the starter of init enters before it does anything else; when `destroy` has removed
// the groups, a starter that was late fails to enter them.
#include "capsule/shell.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/io.h"

namespace godwit::capsule {
namespace {

constexpr int start_ms_max = 60'000;
constexpr mode_t private_mode = 0700;

// Capsule ids become names of files, groups and links.
Result<void> check_id(const CapsuleId& id) {
  bool plain =
      !id.value.empty() && id.value.size() <= 64 &&
      id.value.find_first_not_of("0123456789abcdefghijklmnopqrstuvwxyz-_") == std::string::npos;
  if (!plain) return make_error(Errc::invalid, "capsule id \"{}\"", id);
  return {};
}

Result<void> make_path(const std::string& path, mode_t mode) {
  for (std::size_t at = 1; at != std::string::npos;) {
    at = path.find('/', at + 1);
    std::string part = path.substr(0, at);
    if (::mkdir(part.c_str(), at == std::string::npos ? mode : 0755) != 0 && errno != EEXIST)
      return os_error(fmt::format("mkdir({})", part));
  }
  return {};
}

Result<void> remove_path(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) return os_error(fmt::format("remove {}", path), error.value());
  return {};
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

// What the starter says: "pid N" or "error TEXT"; empty if it died.
Result<std::string> read_report(int fd) {
  std::string text;
  std::int64_t deadline_us = monotonic_us() + std::int64_t{start_ms_max} * 1000;
  while (text.empty() || text.back() != '\n') {
    std::int64_t left_ms = (deadline_us - monotonic_us()) / 1000;
    pollfd entry{fd, POLLIN, 0};
    int polled = ::poll(&entry, 1, left_ms > 0 ? static_cast<int>(left_ms) : 0);
    if (polled < 0 && errno == EINTR) continue;
    if (polled < 0) return os_error("poll(starter)");
    if (polled == 0)
      return make_error(Errc::timeout, "godwit-init isn't ready after {} ms", start_ms_max);
    char buffer[256];
    ssize_t n = ::read(fd, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return os_error("read(starter)");
    if (n == 0) return make_error(Errc::internal, "godwit-init was killed while it started");
    text.append(buffer, static_cast<std::size_t>(n));
  }
  text.pop_back();
  return text;
}

// How godwit-init has to enter it.
std::string_view kind_of(const sys::CgroupGroup::Place& place) {
  if (place.hierarchy.v2) return "v2";
  return place.hierarchy.has("freezer") ? "freezer" : "v1";
}

class SpawnActions {
 public:
  SpawnActions() {
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawnattr_init(&attributes_);
  }
  ~SpawnActions() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;

  // `report` becomes descriptor 3; nothing else of ours is open there.
  Result<pid_t> spawn(const std::vector<std::string>& arguments, int report) {
    for (int fd = 0; fd < 3; ++fd)
      ::posix_spawn_file_actions_addopen(&actions_, fd, "/dev/null", O_RDWR, 0);
    ::posix_spawn_file_actions_adddup2(&actions_, report, 3);
    sigset_t signals;
    sigemptyset(&signals);
    ::posix_spawnattr_setsigmask(&attributes_, &signals);
    sigfillset(&signals);
    ::posix_spawnattr_setsigdefault(&attributes_, &signals);
    ::posix_spawnattr_setflags(&attributes_,
                               POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
    std::vector<char*> argv;
    for (const std::string& argument : arguments)
      argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    char* environment[] = {nullptr};
    pid_t pid = 0;
    int error = ::posix_spawn(&pid, argv[0], &actions_, &attributes_, argv.data(), environment);
    if (error != 0) return os_error(fmt::format("posix_spawn({})", arguments[0]), error);
    return pid;
  }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

// After its report it has nothing left to do, so it needn't be waited for to end by itself.
// Somebody else in this process may reap all children: then there is nothing left to wait for.
void end_starter(pid_t pid) {
  ::kill(pid, SIGKILL);
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace

std::string Shell::socket_path(const NodeEnv& env, const CapsuleId& id) {
  return env.capsule_run_dir(id) + "/init.sock";
}

std::string Shell::cgroup_name(const NodeEnv& env, const CapsuleId& id) {
  return fmt::format("{}/{}", env.cgroup_base, id);
}

Shell::Shell(NodeEnv env, CapsuleId id, image::CapsuleSpec spec)
    : env_(std::move(env)), id_(std::move(id)), spec_(std::move(spec)) {}
Shell::Shell(Shell&&) noexcept = default;
Shell& Shell::operator=(Shell&&) noexcept = default;
Shell::~Shell() = default;

Result<Shell> Shell::create(const NodeEnv& env, const image::CapsuleSpec& spec) {
  CapsuleId id{spec.id()};
  TRY(check_id(id));
  if (exists(env.capsule_run_dir(id)))
    return make_error(Errc::refused, "capsule {} exists on this node already", id);
  Shell shell(env, id, spec);
  auto make = [&]() -> Result<void> {
    TRY(shell.make_directories().with("directories"));
    TRY(shell.make_groups().with("control groups"));
    TRY(shell.start_init().with("start init"));
    TRY(shell.connect_init().with("connect to init"));
    TRY(shell.make_network().with("network"));
    return {};
  };
  Result<void> made = make();
  if (made.ok()) return shell;
  std::string phrase = fmt::format("create capsule {}", id);
  Result<void> undone = shell.destroy();
  if (!undone.ok()) phrase += fmt::format(" (and removing it failed: {})", undone.error().what());
  return std::move(made).error().with(phrase);
}

Result<Shell> Shell::open(const NodeEnv& env, const CapsuleId& id) {
  TRY(check_id(id));
  std::string folder = env.capsule_run_dir(id);
  if (!exists(folder + "/spec.pb"))
    return make_error(Errc::not_found, "no capsule {} on this node", id);
  image::CapsuleSpec spec;
  if (!spec.ParseFromString(TRY(read_file(folder + "/spec.pb"))))
    return make_error(Errc::invalid, "{}/spec.pb isn't a capsule's", folder);
  Shell shell(env, id, std::move(spec));
  std::string name = cgroup_name(env, id);
  std::string phrase = fmt::format("open capsule {}", id);
  shell.group_ = TRY(sys::CgroupGroup::open(name).with(phrase));
  shell.tree_ = TRY(sys::CgroupGroup::open(name + "/tree").with(phrase));
  shell.freezer_path_ = TRY(shell.tree_->freezer_path().with(phrase));
  TRY(shell.connect_init().with(phrase));
  TRY(shell.open_network().with(phrase));
  return shell;
}

Result<void> Shell::make_directories() {
  TRY(make_path(env_.run_dir + "/capsules", private_mode));
  std::string run_dir = env_.capsule_run_dir(id_);
  // Not EEXIST-tolerant: of two that make the same capsule at the same time one must lose here.
  if (::mkdir(run_dir.c_str(), private_mode) != 0)
    return os_error(fmt::format("mkdir({})", run_dir));
  // Left from before a reboot, when this capsule was here once: nobody's.
  TRY(remove_path(env_.capsule_state_dir(id_)));
  std::string tmp = env_.capsule_state_dir(id_) + "/tmp";
  TRY(make_path(env_.capsule_state_dir(id_), private_mode));
  if (::mkdir(tmp.c_str(), 01777) != 0) return os_error(fmt::format("mkdir({})", tmp));
  // mkdir obeys the umask.
  if (::chmod(tmp.c_str(), 01777) != 0) return os_error(fmt::format("chmod({})", tmp));
  return replace_file(run_dir + "/spec.pb", spec_.SerializeAsString(), false);
}

Result<void> Shell::make_groups() {
  std::string name = cgroup_name(env_, id_);
  TRY(sys::CgroupGroup::create(name + "/init"));
  tree_ = TRY(sys::CgroupGroup::create(name + "/tree"));
  group_ = TRY(sys::CgroupGroup::open(name));
  freezer_path_ = TRY(tree_->freezer_path());
  if (spec_.cpus() > 0) TRY(tree_->set_cpu_quota(spec_.cpus()));
  return {};
}

Result<void> Shell::start_init() {
  std::vector<std::string> arguments = {
      env_.libexec_dir + "/godwit-init",
      "--start",
      "--run-dir=" + env_.capsule_run_dir(id_),
      "--tmp-dir=" + env_.capsule_state_dir(id_) + "/tmp",
      "--hostname=" + (spec_.hostname().empty() ? spec_.name() : spec_.hostname()),
      "--hide=" + env_.run_dir,
      "--hide=" + env_.state_dir,
  };
  sys::CgroupGroup init = TRY(sys::CgroupGroup::open(cgroup_name(env_, id_) + "/init"));
  for (const sys::CgroupGroup::Place& place : tree_->places())
    arguments.push_back(fmt::format("--tree-{}={}", kind_of(place), place.path));
  for (const sys::CgroupGroup::Place& place : init.places())
    arguments.push_back(fmt::format("--init-{}={}", kind_of(place), place.path));
  for (const sys::CgroupGroup::Place& place : tree_->places()) {
    arguments.push_back(fmt::format("--cgroup-mount={}:{}:{}", place.hierarchy.v2 ? "v2" : "v1",
                                    fmt::join(place.hierarchy.controllers, ","),
                                    place.hierarchy.mount));
  }
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return os_error("pipe2");
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  SpawnActions actions;
  pid_t starter = TRY(actions.spawn(arguments, write_end.get()));
  write_end.reset();
  Result<std::string> report = read_report(read_end.get());
  end_starter(starter);
  if (!report.ok()) return std::move(report).error();
  if (!report->starts_with("pid ")) return make_error(Errc::internal, "godwit-init: {}", *report);
  return {};
}

Result<void> Shell::connect_init() {
  init_ = std::make_unique<InitClient>(TRY(InitClient::connect(socket_path(env_, id_))));
  return {};
}

Result<void> Shell::destroy(const NodeEnv& env, const CapsuleId& id) {
  TRY(check_id(id));
  std::string phrase = fmt::format("destroy capsule {}", id);
  // The tree before init: init may hold the userfaultfds of pages that are still missing, and with
  // its end they would read as zeros.
  Result<sys::CgroupGroup> tree = sys::CgroupGroup::open(cgroup_name(env, id) + "/tree");
  if (tree.ok()) TRY(tree->kill_all().with(phrase));
  TRY(sys::CgroupGroup::remove(cgroup_name(env, id)).with(phrase));
  // With its last process the network namespace goes, and the pair with it, but at some time; the
  // name must be free when we return.
  sys::Netlink node = TRY(sys::Netlink::open().with(phrase));
  Result<void> deleted = node.delete_link(link_name(id));
  if (!deleted.ok() && deleted.error().code() != Errc::not_found)
    return std::move(deleted).with(phrase);
  TRY(remove_path(env.capsule_state_dir(id)).with(phrase));
  return remove_path(env.capsule_run_dir(id)).with(phrase);
}

Result<void> Shell::destroy() {
  // A socket in the capsule's network namespace would keep that, and a connection its init busy.
  arp_.reset();
  init_.reset();
  return destroy(env_, id_);
}

}  // namespace godwit::capsule
