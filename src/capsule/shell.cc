// Making and removing capsules' shells.
//
// Order, and why a crash at any point leaves nothing that can't be removed: the run directory with
// the shell's serial is made first and removed last, so a shell of which anything exists is listed
// there; every other name (groups, link, directories) follows from the serial. Processes are found
// by their control groups, which the starter of init enters before it does anything else; when
// `destroy` has removed the groups, a starter that was late fails to enter them.
#include "capsule/shell.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"

namespace godwit::capsule {
namespace {

constexpr int start_ms_max = 60'000;
constexpr mode_t private_mode = 0700;
constexpr std::string_view spare_prefix = "spare-", retired_prefix = "retired-";
constexpr std::size_t serial_bytes = 6;  // As text they fit into the name of a link.

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

// In a directory that nobody else writes to; a reader finds it whole or its shell unfinished.
Result<void> write_new(const std::string& path, std::string_view data) {
  UniqueFd fd = TRY(open_fd(path, O_WRONLY | O_CREAT | O_EXCL, 0600));
  return write_full(fd.get(), as_bytes(data));
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

Result<std::string> Shell::serial_of(const NodeEnv& env, const CapsuleId& id) {
  TRY(check_id(id));
  Result<std::string> serial = read_file(env.capsule_run_dir(id) + "/serial");
  // Empty: its maker died before it made anything.
  if (serial.ok() ? serial->empty() : serial.error().sys_errno() == ENOENT)
    return make_error(Errc::not_found, "no shell {} on this node", id);
  if (serial.ok()) TRY(check_id(CapsuleId{*serial}).with("serial"));
  return serial;
}

Result<std::string> Shell::cgroup_name(const NodeEnv& env, const CapsuleId& id) {
  return fmt::format("{}/{}", env.cgroup_base, TRY(serial_of(env, id)));
}

bool Shell::is_spare(const CapsuleId& id) { return id.value.starts_with(spare_prefix); }
bool Shell::is_retired(const CapsuleId& id) { return id.value.starts_with(retired_prefix); }

Shell::Shell(NodeEnv env, CapsuleId id, image::CapsuleSpec spec)
    : env_(std::move(env)),
      id_(std::move(id)),
      serial_(random_hex(serial_bytes)),
      spec_(std::move(spec)) {}
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
    TRY(shell.make());
    return shell.settle();
  };
  Result<void> made = make();
  if (made.ok()) return shell;
  std::string phrase = fmt::format("create capsule {}", id);
  Result<void> undone = shell.destroy();
  if (!undone.ok()) phrase += fmt::format(" (and removing it failed: {})", undone.error().what());
  return std::move(made).error().with(phrase);
}

Result<Shell> Shell::create(const NodeEnv& env, const image::CapsuleSpec& spec,
                            const CapsuleId& spare) {
  if (spare.value.empty()) return create(env, spec);
  CapsuleId id{spec.id()};
  TRY(check_id(id));
  Shell shell(env, id, spec);
  Result<void> taken = shell.take_over(spare);
  if (taken.ok()) return shell;
  LOG(warn, "spare shell {}: {}", spare, taken.error().what());
  shell.arp_.reset();
  shell.init_.reset();
  TRY(destroy(env, spare));
  return create(env, spec);
}

Result<CapsuleId> Shell::make_spare(const NodeEnv& env) {
  Shell shell(env, CapsuleId{}, image::CapsuleSpec());
  shell.id_.value = fmt::format("{}{}", spare_prefix, shell.serial_);
  Result<void> made = shell.make();
  if (made.ok()) return shell.id_;
  std::string phrase = "make a spare shell";
  Result<void> undone = shell.destroy();
  if (!undone.ok()) phrase += fmt::format(" (and removing it failed: {})", undone.error().what());
  return std::move(made).error().with(phrase);
}

// The name last: until then it is the spare, and whoever finds it removes it as such.
Result<void> Shell::take_over(const CapsuleId& spare) {
  serial_ = TRY(serial_of(env_, spare));
  init_ = std::make_unique<InitClient>(TRY(InitClient::connect(socket_path(env_, spare))));
  TRY(open_groups());
  TRY(init_->set_hostname(spec_.hostname().empty() ? spec_.name() : spec_.hostname()));
  std::string folder = env_.capsule_run_dir(spare);
  TRY(write_new(folder + "/spec.pb", spec_.SerializeAsString()));
  TRY(settle());
  if (::renameat2(AT_FDCWD, folder.c_str(), AT_FDCWD, env_.capsule_run_dir(id_).c_str(),
                  RENAME_NOREPLACE) != 0)
    return os_error(fmt::format("rename({}, {})", folder, id_));
  return {};
}

Result<CapsuleId> Shell::retire() {
  TRY(tree_->kill_all());
  TRY(gate(false));
  CapsuleId rest{fmt::format("{}{}", retired_prefix, serial_)};
  if (::rename(env_.capsule_run_dir(id_).c_str(), env_.capsule_run_dir(rest).c_str()) != 0)
    return os_error(fmt::format("rename({}, {})", id_, rest));
  arp_.reset();
  init_.reset();
  id_ = rest;
  return rest;
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
  std::string phrase = fmt::format("open capsule {}", id);
  shell.serial_ = TRY(serial_of(env, id).with(phrase));
  TRY(shell.open_groups().with(phrase));
  TRY(shell.connect_init().with(phrase));
  TRY(shell.open_network().with(phrase));
  return shell;
}

Result<void> Shell::open_groups() {
  group_ = TRY(sys::CgroupGroup::open(fmt::format("{}/{}", env_.cgroup_base, serial_)));
  tree_ = TRY(group_->child("tree"));
  freezer_path_ = TRY(tree_->freezer_path());
  return {};
}

Result<void> Shell::make() {
  TRY(make_directories().with("directories"));
  TRY(make_groups().with("control groups"));
  TRY(start_init().with("start init"));
  TRY(connect_init().with("connect to init"));
  return make_link().with("network");
}

Result<void> Shell::settle() {
  if (spec_.cpus() > 0) TRY(tree_->set_cpu_quota(spec_.cpus()).with("control groups"));
  return settle_network().with("network");
}

Result<void> Shell::make_directories() {
  TRY(make_path(env_.run_dir + "/capsules", private_mode));
  std::string run_dir = env_.capsule_run_dir(id_);
  // Not EEXIST-tolerant: of two that make the same capsule at the same time one must lose here.
  if (::mkdir(run_dir.c_str(), private_mode) != 0)
    return os_error(fmt::format("mkdir({})", run_dir));
  TRY(write_new(run_dir + "/serial", serial_));
  std::string tmp = state_dir() + "/tmp";
  TRY(make_path(state_dir(), private_mode));
  if (::mkdir(tmp.c_str(), 01777) != 0) return os_error(fmt::format("mkdir({})", tmp));
  // mkdir obeys the umask.
  if (::chmod(tmp.c_str(), 01777) != 0) return os_error(fmt::format("chmod({})", tmp));
  if (is_spare(id_)) return {};
  return write_new(run_dir + "/spec.pb", spec_.SerializeAsString());
}

Result<void> Shell::make_groups() {
  std::string name = fmt::format("{}/{}", env_.cgroup_base, serial_);
  TRY(sys::CgroupGroup::create(name + "/init"));
  TRY(sys::CgroupGroup::create(name + "/tree"));
  return open_groups();
}

Result<void> Shell::start_init() {
  std::vector<std::string> arguments = {
      env_.libexec_dir + "/godwit-init",
      "--start",
      "--run-dir=" + env_.capsule_run_dir(id_),
      "--tmp-dir=" + state_dir() + "/tmp",
      "--hostname=" + (spec_.hostname().empty() ? spec_.name() : spec_.hostname()),
      "--hide=" + env_.run_dir,
      "--hide=" + env_.state_dir,
  };
  sys::CgroupGroup init = TRY(group_->child("init"));
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
  Result<std::string> serial = serial_of(env, id);
  if (serial.ok()) TRY(destroy_what_serial_names(env, *serial).with(phrase));
  if (!serial.ok() && serial.error().code() != Errc::not_found)
    return std::move(serial).error().with(phrase);
  return remove_path(env.capsule_run_dir(id)).with(phrase);
}

Result<void> Shell::destroy_what_serial_names(const NodeEnv& env, const std::string& serial) {
  std::string group = fmt::format("{}/{}", env.cgroup_base, serial);
  // The tree before init: init may hold the userfaultfds of pages that are still missing, and with
  // its end they would read as zeros.
  Result<sys::CgroupGroup> tree = sys::CgroupGroup::open(group + "/tree");
  if (tree.ok()) TRY(tree->kill_all());
  TRY(sys::CgroupGroup::remove(group));
  // With its last process the network namespace goes, and the pair with it, but at some time; the
  // name must be free when we return.
  sys::Netlink node = TRY(sys::Netlink::open());
  Result<void> deleted = node.delete_link(link_name_of(serial));
  if (!deleted.ok() && deleted.error().code() != Errc::not_found) return deleted;
  return remove_path(env.shell_state_dir(serial));
}

// After a reboot the run directory is empty, what was kept on disk isn't.
Result<void> Shell::remove_orphaned_state(const NodeEnv& env) {
  std::set<std::string> used;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(env.run_dir + "/capsules", error)) {
    Result<std::string> serial = serial_of(env, CapsuleId{entry.path().filename()});
    if (serial.ok()) used.insert(*serial);
  }
  if (error && error.value() != ENOENT)
    return os_error(fmt::format("readdir({}/capsules)", env.run_dir), error.value());
  const std::string kept = env.shell_state_dir("");
  for (const auto& entry : std::filesystem::directory_iterator(kept, error))
    if (!used.contains(entry.path().filename())) TRY(remove_path(entry.path()));
  if (error && error.value() != ENOENT)
    return os_error(fmt::format("readdir({})", kept), error.value());
  return {};
}

Result<void> Shell::destroy_retired(const NodeEnv& env) {
  std::error_code error;
  Result<void> first;
  for (const auto& entry : std::filesystem::directory_iterator(env.run_dir + "/capsules", error)) {
    CapsuleId id{entry.path().filename()};
    if (!is_retired(id)) continue;
    Result<void> destroyed = destroy(env, id);
    if (!destroyed.ok() && first.ok()) first = std::move(destroyed);
  }
  if (error) return os_error(fmt::format("readdir({}/capsules)", env.run_dir), error.value());
  return first;
}

Result<void> Shell::destroy() {
  // A socket in the capsule's network namespace would keep that, and a connection its init busy.
  arp_.reset();
  init_.reset();
  return destroy(env_, id_);
}

}  // namespace godwit::capsule
