// System V objects and POSIX queues outlive the processes that made them, so a program can depend
// on one that it neither has mapped nor open. /proc/sysvipc shows those of the reader's IPC
// namespace, whatever /proc it is read through, and a new mount of mqueue shows the queues of the
// mounter's: so a short-lived thread enters the capsule's namespace and looks there. Nothing is
// created: the mount is never attached anywhere.

#include "capture/preflight_ipc.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>

#include <memory>
#include <sstream>
#include <thread>

#include "base/io.h"
#include "sys/namespaces.h"

namespace godwit::capture {
namespace {

// /proc/sysvipc/KIND: a line of titles, then "KEY ID ..." for each object.
Result<void> list_sysv(const char* kind, const char* name, std::vector<std::string>& reasons) {
  Result<std::string> text = read_file(fmt::format("/proc/sysvipc/{}", kind));
  if (!text.ok()) {
    if (text.error().sys_errno() == ENOENT) return {};  // A kernel without System V IPC.
    return std::move(text).error();
  }
  std::istringstream lines(*text);
  std::string line;
  std::getline(lines, line);
  while (std::getline(lines, line)) {
    long long key = 0, id = 0;
    if (std::sscanf(line.c_str(), "%lld %lld", &key, &id) != 2)
      return make_error(Errc::invalid, "/proc/sysvipc/{}: \"{}\"", kind, line);
    reasons.push_back(
        fmt::format("the capsule has the System V {} {} (key {:#x}), which can't move yet", name,
                    id, static_cast<std::uint32_t>(key)));
  }
  return {};
}

Result<void> list_queues(std::vector<std::string>& reasons) {
  UniqueFd context(::fsopen("mqueue", FSOPEN_CLOEXEC));
  if (!context.valid()) {
    if (errno == ENODEV) return {};  // A kernel without POSIX queues.
    return os_error("fsopen(mqueue)");
  }
  if (::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0)
    return os_error("fsconfig(mqueue)");
  UniqueFd mount(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
  if (!mount.valid()) return os_error("fsmount(mqueue)");
  UniqueFd root(::openat(mount.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root.valid()) return os_error("open(mqueue)");
  DIR* opened = ::fdopendir(root.get());
  if (opened == nullptr) return os_error("fdopendir(mqueue)");
  (void)root.release();  // Closed with the directory.
  std::unique_ptr<DIR, int (*)(DIR*)> directory(opened, ::closedir);
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(directory.get());
    if (entry == nullptr && errno != 0) return os_error("readdir(mqueue)");
    if (entry == nullptr) break;
    if (entry->d_name[0] == '.') continue;
    reasons.push_back(fmt::format(
        "the capsule has the POSIX message queue /{}, which can't move yet", entry->d_name));
  }
  return {};
}

Result<std::vector<std::string>> look(const UniqueFd& ipc_namespace) {
  if (::setns(ipc_namespace.get(), CLONE_NEWIPC) != 0) return os_error("setns(CLONE_NEWIPC)");
  std::vector<std::string> reasons;
  TRY(list_sysv("shm", "segment", reasons));
  TRY(list_sysv("sem", "semaphore set", reasons));
  TRY(list_sysv("msg", "message queue", reasons));
  TRY(list_queues(reasons));
  return reasons;
}

}  // namespace

Result<std::vector<std::string>> ipc_reasons(pid_t init_pid) {
  UniqueFd ipc_namespace = TRY(sys::open_namespace(init_pid, "ipc"));
  Result<std::vector<std::string>> reasons = Error(Errc::internal, "nothing was looked at");
  std::thread inside([&] { reasons = look(ipc_namespace); });
  inside.join();
  return reasons;
}

}  // namespace godwit::capture
