// What a capsule sees of the node's files: all of it, but for what is bound to identity. Those are
// its own: /proc, /sys (of its network namespace, read-only), control groups, /dev/pts, /dev/shm,
// /dev/mqueue, /tmp. The node's own directories (sockets of daemons, other capsules' files) are
// covered.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "capsule/init/starter.h"

namespace godwit::init {
namespace {

bool is_directory(const char* path) {
  struct stat status;
  return ::stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

constexpr unsigned long plain = MS_NOSUID | MS_NODEV | MS_NOEXEC;

// The new sysfs hides what was mounted below the old one: control groups come back, with the tree's
// group as their root since that is the root of our cgroup namespace.
Fail mount_sys(const StartOrder& order) {
  if (::mount("sysfs", "/sys", "sysfs", plain | MS_RDONLY, nullptr) != 0) {
    // Inside a container that covers parts of /sys nobody may mount another: keep the node's.
    return errno == EPERM ? ok() : fail("mount(/sys)");
  }
  bool own_directory = false;
  for (int i = 0; i < order.cgroup_mounts_count; ++i) {
    const CgroupMount& cgroup = order.cgroup_mounts[i];
    constexpr const char* base = "/sys/fs/cgroup";
    if (std::strncmp(cgroup.path, base, std::strlen(base)) != 0) continue;
    bool below = cgroup.path[std::strlen(base)] == '/';
    if (below && !own_directory) {
      if (::mount("tmpfs", base, "tmpfs", plain, "mode=755,size=64k") != 0)
        return fail("mount(/sys/fs/cgroup)");
      own_directory = true;
    }
    if (below && ::mkdir(cgroup.path, 0755) != 0 && errno != EEXIST)
      return fail("mkdir below /sys/fs/cgroup");
    const char* type = cgroup.v2 ? "cgroup2" : "cgroup";
    if (::mount(type, cgroup.path, type, plain | MS_RDONLY,
                cgroup.v2 ? nullptr : cgroup.controllers) != 0)
      return fail("mount of a cgroup hierarchy");
  }
  return ok();
}

Fail mount_dev() {
  // /dev/ptmx finds the instance by its sibling "pts", so it needs no change where it is a device.
  if (is_directory("/dev/pts") && ::mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
                                          "newinstance,ptmxmode=0666,mode=620,gid=5") != 0)
    return fail("mount(/dev/pts)");
  if (is_directory("/dev/shm") &&
      ::mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777") != 0)
    return fail("mount(/dev/shm)");
  // A place for it may be missing where no program ever asked for POSIX queues.
  if (::mkdir("/dev/mqueue", 0755) != 0 && !is_directory("/dev/mqueue")) return ok();
  if (::mount("mqueue", "/dev/mqueue", "mqueue", plain, nullptr) != 0 && errno != ENODEV)
    return fail("mount(/dev/mqueue)");
  return ok();
}

}  // namespace

Fail mount_private(const StartOrder& order) {
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
    return fail("make mounts private");
  if (::mount("proc", "/proc", "proc", plain, nullptr) != 0) return fail("mount(/proc)");
  CHECK(mount_sys(order));
  CHECK(mount_dev());
  // Resolved before /tmp is covered: the directories may be below the node's /tmp.
  int tmp = ::open(order.tmp_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (tmp < 0) return fail("open of the private /tmp");
  char source[40];
  std::snprintf(source, sizeof(source), "/proc/self/fd/%d", tmp);
  Fail result;
  for (int i = 0; i < order.hidden_count && !result.failed(); ++i) {
    if (is_directory(order.hidden[i]) &&
        ::mount("tmpfs", order.hidden[i], "tmpfs", plain | MS_RDONLY, "mode=0,size=4k") != 0)
      result = fail("cover a directory of the node");
  }
  if (!result.failed() && ::mount(source, "/tmp", nullptr, MS_BIND, nullptr) != 0)
    result = fail("mount(/tmp)");
  ::close(tmp);
  return result;
}

}  // namespace godwit::init
