// What a node sees, and where it comes from.
//
// | path                 | what                                                               |
// |----------------------|--------------------------------------------------------------------|
// | /                    | overlayfs: the machine's / below, the node's disk above            |
// | other mounts         | an overlay each likewise (read-only bind where overlayfs refuses): |
// |                      | a node sees what the machine sees, neither less nor more           |
// | /tmp                 | on the node's disk, hides the machine's, emptied at boot           |
// | /run, /dev/shm       | tmpfs                                                              |
// | /run/godwit          | a directory of the machine's, by which it reaches the sockets      |
// | /dev                 | tmpfs with nodes for what the machine has; a devpts of its own     |
// | /proc, /sys, mqueue  | made anew in the node's namespaces                                 |
// | /sys/fs/cgroup       | the machine's, with all that is mounted in it                      |
// | .../random/boot_id   | new at each boot, as on a machine                                  |
// | the shared directory | the machine's, at the same path: the one thing that nodes share    |
//
// Overlayfs gives every node other device numbers for the same file, as different machines have,
// and costs nothing where files are only read. Facts (Linux 6.18):
// - upper and work may lie below the lower directory (only a lower below another layer is refused);
//   they can't be reached through the overlay (ELOOP), and are hidden by an empty tmpfs.
// - With index=on a second mount of an upper directory that is still mounted fails with EBUSY
// instead
//   of being "undefined": the mounts of a node that was just killed go away with its last process,
//   a moment later.
// - Changes to lower files under a mounted overlay may or may not be seen. So what is to be seen by
//   nodes while they run belongs into the shared directory.
#include "local/node_root.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>
#include <thread>

#include "base/clock.h"
#include "base/io.h"
#include "local/node_config.h"

namespace godwit::local {
namespace {

constexpr std::int64_t overlay_wait_us_max = 10'000'000;
constexpr const char* hidden_places[] = {"/proc", "/sys", "/dev", "/run", "/tmp", disk_root};
constexpr const char* devices[] = {"null",    "zero",        "full", "random",
                                   "urandom", "tty",         "kmsg", "fuse",
                                   "net/tun", "userfaultfd", "kvm",  "vhost-net"};

bool is_below(const std::string& path, const std::string& place) {
  return path == place || path.starts_with(place + "/");
}

bool is_hidden(const std::string& path) {
  return std::any_of(std::begin(hidden_places), std::end(hidden_places),
                     [&](const char* place) { return is_below(path, place); });
}

Result<void> do_mount(const char* source, const std::string& target, const char* type,
                      unsigned long flags, const std::string& options = "") {
  if (::mount(source, target.c_str(), type, flags, options.c_str()) != 0)
    return os_error(fmt::format("mount({}, {}, {}, {:#x}, \"{}\")", source, target,
                                type == nullptr ? "-" : type, flags, options));
  return {};
}

Result<void> bind_mount(const std::string& source, const std::string& target, bool read_only) {
  TRY(do_mount(source.c_str(), target, nullptr, MS_BIND | MS_REC));
  if (read_only) TRY(do_mount("none", target, nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY));
  return {};
}

// The kernel writes space, tab, newline and backslash as \ooo.
std::string unescape(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                               (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

// Mount points of the machine that its / doesn't contain, outer ones first.
Result<std::vector<std::string>> other_mounts() {
  std::istringstream info(TRY(read_file("/proc/self/mountinfo")));
  std::vector<std::string> found;
  std::string line;
  while (std::getline(info, line)) {
    std::istringstream fields(line);
    std::string id, parent, device, root, point;
    if (!(fields >> id >> parent >> device >> root >> point)) continue;
    point = unescape(point);
    if (point != "/" && !is_hidden(point)) found.push_back(point);
  }
  std::sort(found.begin(), found.end());  // "/a" before "/a/b".
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

// In an overlay's options.
std::string option_escape(const std::string& path) {
  std::string out;
  for (char c : path) {
    if (c == ':' || c == ',' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

Result<void> mount_overlay(const std::string& lower, const std::string& layers,
                           const std::string& target) {
  TRY(make_dirs(layers + "/upper"));
  TRY(make_dirs(layers + "/work", 0700));
  std::string options =
      fmt::format("lowerdir={},upperdir={}/upper,workdir={}/work,index=on", option_escape(lower),
                  option_escape(layers), option_escape(layers));
  std::int64_t deadline_us = monotonic_us() + overlay_wait_us_max;
  while (true) {
    Result<void> mounted = do_mount("godwit-node", target, "overlay", 0, options);
    // Busy: the mounts of this node's last boot are not gone yet.
    if (mounted.ok() || mounted.error().sys_errno() != EBUSY || monotonic_us() > deadline_us)
      return mounted;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

// A mount of the machine's besides /, for the node.
Result<void> copy_mount(const std::string& point, const std::string& root,
                        const std::string& disk) {
  struct stat status {};
  // Gone, or not to be reached by root either (a FUSE mount of a user's): not for nodes.
  if (::stat(point.c_str(), &status) != 0) return {};
  std::string target = root + point;
  if (!S_ISDIR(status.st_mode)) {
    if (::access(target.c_str(), F_OK) != 0) return {};
    return bind_mount(point, target, true);
  }
  std::string name;
  for (char c : point) name += c == '/' ? "%2f" : c == '%' ? "%25" : std::string(1, c);
  TRY(make_dirs(target));
  if (mount_overlay(point, fmt::format("{}/mounts/{}", disk, name), target).ok()) return {};
  return bind_mount(point, target, true);
}

Result<void> make_devices(const std::string& dev) {
  TRY(do_mount("godwit-dev", dev, "tmpfs", MS_NOSUID, "mode=755,size=1m"));
  for (const char* name : devices) {
    struct stat status {};
    std::string path = fmt::format("{}/{}", dev, name);
    if (::stat(fmt::format("/dev/{}", name).c_str(), &status) != 0 || !S_ISCHR(status.st_mode))
      continue;
    TRY(make_dirs(path.substr(0, path.rfind('/'))));
    if (::mknod(path.c_str(), status.st_mode, status.st_rdev) != 0)
      return os_error(fmt::format("mknod({})", path));
    // Also of null and the like, whatever the umask.
    if (::chmod(path.c_str(), status.st_mode & 0777) != 0)
      return os_error(fmt::format("chmod({})", path));
  }
  constexpr std::pair<const char*, const char*> links[] = {{"/proc/self/fd", "fd"},
                                                           {"/proc/self/fd/0", "stdin"},
                                                           {"/proc/self/fd/1", "stdout"},
                                                           {"/proc/self/fd/2", "stderr"},
                                                           {"pts/ptmx", "ptmx"}};
  for (auto [to, name] : links) {
    if (::symlink(to, fmt::format("{}/{}", dev, name).c_str()) != 0)
      return os_error(fmt::format("symlink({}, {}/{})", to, dev, name));
  }
  for (const char* name : {"pts", "shm", "mqueue"}) TRY(make_dirs(fmt::format("{}/{}", dev, name)));
  TRY(do_mount("devpts", dev + "/pts", "devpts", MS_NOSUID | MS_NOEXEC,
               "newinstance,ptmxmode=0666,mode=620,gid=5"));
  TRY(do_mount("tmpfs", dev + "/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"));
  // Kernels without POSIX message queues have no such file system, and nothing to put there.
  Result<void> queues =
      do_mount("mqueue", dev + "/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC);
  if (!queues.ok() && queues.error().sys_errno() != ENODEV) return queues;
  return {};
}

Result<void> mount_kernel_views(const std::string& root) {
  unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  TRY(do_mount("proc", root + "/proc", "proc", flags));
  TRY(do_mount("sysfs", root + "/sys", "sysfs", flags));
  // The node's groups are in the machine's hierarchies, v1 and v2 alike.
  return bind_mount("/sys/fs/cgroup", root + "/sys/fs/cgroup", false);
}

// A directory of the machine's that must be there at the same path.
Result<void> pass_through(const std::string& path, const std::string& root, bool read_only) {
  TRY(make_dirs(root + path));
  return bind_mount(path, root + path, read_only);
}

Result<void> mount_private_places(const ClusterState& cluster, const NodeState& node,
                                  const std::string& root) {
  TRY(do_mount("godwit-run", root + "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755"));
  TRY(make_dirs(root + "/run/lock", 01777));
  TRY(make_dirs(root + "/run/godwit"));
  TRY(bind_mount(node_run_dir(cluster.name, node.node), root + "/run/godwit", false));
  TRY(remove_contents(root + "/tmp"));
  TRY(make_dirs(root + disk_root));
  TRY(do_mount("godwit-mask", root + disk_root, "tmpfs", MS_NOSUID | MS_NODEV,
               "mode=755,size=64k"));
  TRY(pass_through(cluster.shared_dir, root, false));
  // A build below /tmp or /run, which the node's own hide.
  std::vector<std::string> programs = {
      cluster.daemon_path.substr(0, cluster.daemon_path.rfind('/')), cluster.libexec_dir};
  for (std::size_t i = 0; i < programs.size(); ++i) {
    if (is_hidden(programs[i]) && (i == 0 || programs[i] != programs[0]))
      TRY(pass_through(programs[i], root, true));
  }
  return {};
}

Result<void> pivot(const std::string& root) {
  if (::chdir(root.c_str()) != 0) return os_error(fmt::format("chdir({})", root));
  // The old root ends up on top of the new one, at the same place, and is taken off there.
  if (::syscall(SYS_pivot_root, ".", ".") != 0)
    return os_error(fmt::format("pivot_root({})", root));
  if (::umount2(".", MNT_DETACH) != 0) return os_error("umount of the old root");
  if (::chdir("/") != 0) return os_error("chdir(/)");
  return {};
}

Result<void> renew_boot_id() {
  std::string hex = random_hex(16);
  std::string id = fmt::format("{}-{}-4{}-a{}-{}\n", hex.substr(0, 8), hex.substr(8, 4),
                               hex.substr(13, 3), hex.substr(17, 3), hex.substr(20));
  constexpr const char* copy = "/run/.boot_id";
  TRY(replace_file(copy, id, false));
  if (::chmod(copy, 0444) != 0) return os_error("chmod(/run/.boot_id)");
  return bind_mount(copy, "/proc/sys/kernel/random/boot_id", true);
}

Result<void> put_file(const std::string& path, const std::string& content, unsigned mode) {
  UniqueFd fd = TRY(open_fd(path, O_WRONLY | O_CREAT | O_TRUNC, mode));
  if (::fchmod(fd.get(), mode) != 0) return os_error(fmt::format("chmod({})", path));
  return write_full(fd.get(), as_bytes(content)).with(path);
}

// Hides what the machine has at this path.
Result<void> make_opaque(const std::string& path, unsigned mode) {
  TRY(make_dirs(path, mode));
  if (::setxattr(path.c_str(), "trusted.overlay.opaque", "y", 1, 0) != 0)
    return os_error(fmt::format("setxattr({}, trusted.overlay.opaque)", path));
  return {};
}

NodeConfig config_of(const ClusterState& cluster, const NodeState& node) {
  NodeConfig config;
  config.cluster = cluster.name;
  config.node = node.node.value;
  config.cgroup_base = node_cgroup(cluster.name, node.node);
  config.libexec_dir = cluster.libexec_dir;
  config.address = sys::to_string(node.address);
  config.capsule_network = sys::to_string(cluster.network);
  config.capsule_range = sys::to_string(cluster.capsule_range(node));
  config.shared = {cluster.shared_dir};
  config.cores = node.cores;
  config.core_speed = node.speed;
  config.memory_bytes = node.memory_bytes;
  for (const NodeState& peer : cluster.nodes) {
    if (peer.node != node.node)
      config.peers.push_back(
          {peer.node.value, fmt::format("{}:{}", sys::to_string(peer.address), node_port)});
  }
  return config;
}

}  // namespace

Result<void> make_node_disk(const ClusterState& cluster, const NodeState& node,
                            const NodeIdentity& identity) {
  std::string disk = node_disk_dir(cluster.name, node.node);
  std::string upper = disk + "/upper";
  TRY(make_dirs(disk));
  TRY(make_dirs(disk + "/root"));
  TRY(make_dirs(upper));
  TRY(make_opaque(upper + "/tmp", 01777));
  TRY(make_opaque(upper + "/var/lib/godwit", 0700));
  TRY(make_opaque(upper + "/etc/godwit", 0755));
  std::string hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
  for (const NodeState& each : cluster.nodes)
    hosts += fmt::format("{} {}\n", sys::to_string(each.address), each.node);
  TRY(put_file(upper + "/etc/hosts", hosts, 0644));
  TRY(put_file(upper + "/etc/hostname", node.node.value + "\n", 0644));
  TRY(put_file(upper + "/etc/machine-id", random_hex(16) + "\n", 0444));
  TRY(put_file(upper + "/etc/godwit/godwit.toml", to_toml(config_of(cluster, node)), 0644));
  TRY(put_file(upper + "/etc/godwit/ca.crt", identity.authority, 0644));
  TRY(put_file(upper + "/etc/godwit/node.crt", identity.certificate, 0644));
  return put_file(upper + "/etc/godwit/node.key", identity.key, 0600);
}

Result<void> enter_node_root(const ClusterState& cluster, const NodeState& node) {
  TRY(do_mount("none", "/", nullptr, MS_REC | MS_PRIVATE));
  std::string disk = node_disk_dir(cluster.name, node.node);
  std::string root = disk + "/root";
  std::vector<std::string> others = TRY(other_mounts());
  TRY(mount_overlay("/", disk, root));
  for (const std::string& point : others)
    TRY(copy_mount(point, root, disk).with(fmt::format("mount {} in the node", point)));
  TRY(mount_kernel_views(root));
  TRY(make_devices(root + "/dev"));
  TRY(mount_private_places(cluster, node, root));
  TRY(pivot(root));
  TRY(renew_boot_id());
  const std::string& name = node.node.value;
  if (::sethostname(name.data(), name.size()) != 0)
    return os_error(fmt::format("sethostname({})", name));
  return {};
}

}  // namespace godwit::local
