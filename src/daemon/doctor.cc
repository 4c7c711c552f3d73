// Each probe tries the real thing on this process or a child of its own, because versions lie:
// distributions backport, containers forbid, modules are missing. Nothing here changes the node.
#include "daemon/doctor.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/netlink.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <set>

#include "base/io.h"
#include "base/unique_fd.h"
#include "capsule/shell.h"
#include "sys/cgroup.h"
#include "sys/cpuid.h"
#include "sys/kernel_features.h"
#include "sys/vdso.h"

namespace godwit::daemon {
namespace {

// Newer than Debian 12's kernel headers (include/uapi/linux/userfaultfd.h, fs.h, prctl.h).
constexpr std::uint64_t feature_wp_unpopulated = 1u << 13;
constexpr std::uint64_t feature_poison = 1u << 14;
constexpr std::uint64_t feature_wp_async = 1u << 15;
constexpr std::uint64_t feature_move = 1u << 16;
struct PagemapScan {
  std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
constexpr unsigned long pagemap_scan = _IOWR('f', 16, PagemapScan);
constexpr std::uint64_t page_is_present = 1 << 3;
constexpr int mm_map_size = 15;  // PR_SET_MM_MAP_SIZE

class Examination {
 public:
  explicit Examination(api::DoctorReply& reply) : reply_(reply) {}
  void ok(const std::string& name, const std::string& found = "yes") { add(name, "ok", found, ""); }
  void degraded(const std::string& name, const std::string& found, const std::string& instead) {
    add(name, "degraded", found, instead);
  }
  void missing(const std::string& name, const std::string& found, const std::string& instead) {
    add(name, "missing", found, instead);
  }
  // By the outcome of a system call that has just been made.
  void by_errno(const std::string& name, bool works, const std::string& instead) {
    const int error = errno;
    if (works)
      ok(name);
    else
      degraded(name, std::strerror(error), instead);
  }

 private:
  void add(const std::string& name, const char* status, const std::string& found,
           const std::string& instead) {
    auto* probe = reply_.add_probes();
    probe->set_name(name);
    probe->set_status(status);
    probe->set_found(found);
    probe->set_instead(instead);
  }
  api::DoctorReply& reply_;
};

bool userfaultfd_has(std::uint64_t features) {
  UniqueFd fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!fd.valid()) return false;
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  return ioctl(fd.get(), UFFDIO_API, &api) == 0;
}

void examine_memory(Examination& out) {
  const bool uffd = userfaultfd_has(0);
  bool tracks = false;
  out.by_errno("userfaultfd", uffd, "no post-copy, and no dirty tracking by it: stop-and-copy");
  if (uffd) {
    const bool async = userfaultfd_has(feature_wp_async | feature_wp_unpopulated);
    out.by_errno("userfaultfd WP_ASYNC (6.7)", async, "see tracking of writes");
    tracks = async;
    out.by_errno("userfaultfd MOVE (6.8)", userfaultfd_has(feature_move),
                 "pages are placed by UFFDIO_COPY");
    out.by_errno("userfaultfd POISON (6.6)", userfaultfd_has(feature_poison),
                 "a lost source kills the capsule instead of poisoning pages");
  }
  UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  PagemapScan scan{};
  scan.size = sizeof scan;
  scan.start = reinterpret_cast<std::uint64_t>(&scan) & ~std::uint64_t{4095};
  scan.end = scan.start + 4096;
  scan.category_mask = scan.return_mask = page_is_present;
  std::uint64_t regions[3] = {};
  scan.vec = reinterpret_cast<std::uint64_t>(regions);
  scan.vec_len = 1;
  const bool scans = ioctl(pagemap.get(), pagemap_scan, &scan) >= 0;
  out.by_errno("PAGEMAP_SCAN (6.7)", scans, "see tracking of writes");

  // A page that was just written carries the bit (55) where the kernel has soft-dirty.
  volatile char written = 1;
  std::uint64_t entry = 0;
  const auto address = reinterpret_cast<std::uint64_t>(&written);
  const bool read = pread(pagemap.get(), &entry, sizeof entry,
                          static_cast<off_t>(address / 4096 * 8)) == sizeof entry;
  const bool soft_dirty = read && (entry >> 55 & 1) != 0;
  if (soft_dirty)
    out.ok("soft-dirty");
  else
    out.degraded("soft-dirty", "not in this kernel", "see tracking of writes");
  if (tracks && scans)
    out.ok("tracking of writes", "userfaultfd and PAGEMAP_SCAN");
  else if (soft_dirty)
    out.degraded("tracking of writes", "soft-dirty", "each round stops the program for a moment");
  else
    out.degraded("tracking of writes", "none",
                 "programs leave this node without rounds: auto uses post-copy");

  unsigned size = 0;
  out.by_errno(
      "PR_SET_MM_MAP",
      prctl(PR_SET_MM, mm_map_size, reinterpret_cast<unsigned long>(&size), 0, 0) == 0 && size != 0,
      "nothing can be restored here: capsules can't come to this node");
  char byte = 0;
  char copy = 0;
  iovec local{&copy, 1};
  iovec remote{&byte, 1};
  out.by_errno("process_vm_readv", process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1,
               "memory is read through /proc/PID/mem");
}

// Where nodes differ in these, programs keep what they have, or are refused by name.
void examine_kernel(Examination& out) {
  const auto vdso = sys::own_vdso_build_id();
  if (vdso.ok()) {
    std::string id;
    for (const char c : *vdso) id += fmt::format("{:02x}", static_cast<unsigned char>(c));
    out.ok("vdso", id.substr(0, 16));
  } else {
    out.missing("vdso", vdso.error().what(), "nothing can leave this node or come to it");
  }
  for (const std::string& name : sys::kernel_feature_names(sys::kernel_features())) out.ok(name);
  for (const std::string& name :
       sys::kernel_feature_names(sys::kernel_features_all & ~sys::kernel_features()))
    out.degraded(name, "not in this kernel", "programs that use it can't come to this node");
}

// clone3 with a chosen pid, in a PID namespace of its own, and a time namespace beside.
void examine_processes(Examination& out) {
  int pair[2];
  if (pipe2(pair, O_CLOEXEC) != 0) return;
  UniqueFd reading(pair[0]);
  UniqueFd writing(pair[1]);
  clone_args outer{};
  outer.flags = CLONE_NEWPID;
  outer.exit_signal = SIGCHLD;
  const long child = syscall(SYS_clone3, &outer, sizeof outer);
  if (child == 0) {
    // Only async-signal-safe calls: the daemon has threads.
    int result[2] = {0, 0};
    pid_t wanted = 1234;
    clone_args inner{};
    inner.set_tid = reinterpret_cast<std::uint64_t>(&wanted);
    inner.set_tid_size = 1;
    inner.exit_signal = SIGCHLD;
    const long grandchild = syscall(SYS_clone3, &inner, sizeof inner);
    if (grandchild == 0) _exit(0);
    result[0] = grandchild == wanted ? 0 : (grandchild < 0 ? errno : EINVAL);
    result[1] = unshare(CLONE_NEWTIME) == 0 ? 0 : errno;
    ssize_t n = ::write(pair[1], result, sizeof result);
    _exit(n == sizeof result ? 0 : 1);
  }
  if (child < 0) {
    out.by_errno("PID namespaces, clone3", false, "no capsules can be made here");
    return;
  }
  int result[2] = {EIO, EIO};
  auto got = read_full(reading.get(), std::as_writable_bytes(std::span(result)));
  waitpid(static_cast<pid_t>(child), nullptr, 0);
  if (!got.ok()) result[0] = result[1] = EIO;
  out.ok("PID namespaces, clone3");
  errno = result[0];
  out.by_errno("clone3 set_tid", result[0] == 0, "no capsule can come to this node");
  errno = result[1];
  out.by_errno("time namespaces", result[1] == 0,
               "CLOCK_MONOTONIC jumps when a capsule comes from a node with another boot time");

  const UniqueFd self(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  const UniqueFd stolen(static_cast<int>(syscall(SYS_pidfd_getfd, self.get(), 0, 0)));
  out.by_errno("pidfd_getfd", self.valid() && stolen.valid(),
               "descriptors can't be examined: nothing can leave this node");
  errno = ENOSYS;
  const long kcmp = syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 0);
  out.by_errno("kcmp", kcmp == 0, "shared file offsets are told apart by offset and flags only");
}

void examine_network(Examination& out) {
  UniqueFd tcp(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  out.by_errno("TCP_REPAIR", setsockopt(tcp.get(), IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) == 0,
               "connections of a capsule can't move with it");
  UniqueFd ulp(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  // On an unconnected socket: ENOTCONN if the module is there, ENOENT if it isn't.
  const bool ktls = setsockopt(ulp.get(), SOL_TCP, TCP_ULP, "tls", 4) == 0 || errno == ENOTCONN;
  out.by_errno("kTLS", ktls, "encryption in user space");
  const auto available = read_file("/proc/sys/net/ipv4/tcp_available_congestion_control");
  if (available.ok() && available->find("cubic") != std::string::npos) {
    out.ok("TCP congestion control cubic");
  } else {
    out.degraded("TCP congestion control cubic", available.ok() ? *available : "unknown",
                 "the kernel's default; bbr moves a third of it over a local link");
  }
}

void examine_cgroups(Examination& out) {
  auto mounted = sys::mounted_cgroups();
  if (!mounted.ok() || mounted->empty()) {
    out.missing("control groups", mounted.ok() ? "none mounted" : mounted.error().what(),
                "no capsules can be made here");
    return;
  }
  bool v2 = false;
  bool v1_freezer = false;
  std::string found;
  std::set<std::string> controllers;
  for (const auto& hierarchy : *mounted) {
    v2 = v2 || hierarchy.v2;
    v1_freezer = v1_freezer || (!hierarchy.v2 && hierarchy.has("freezer"));
    controllers.insert(hierarchy.controllers.begin(), hierarchy.controllers.end());
  }
  if (v2)
    out.ok("freezer", "cgroup v2");
  else if (v1_freezer)
    out.degraded("freezer", "cgroup v1", "polled; ptrace waits for the thaw");
  else
    out.missing("freezer", "none", "nothing can be frozen or moved here");
  for (const char* name : {"cpu", "memory"}) {
    if (controllers.contains(name) ||
        (std::string(name) == "cpu" && controllers.contains("cpuacct"))) {
      out.ok(fmt::format("cgroup controller {}", name));
    } else {
      out.degraded(fmt::format("cgroup controller {}", name), "absent",
                   fmt::format("no limit of {}, and none is shown", name));
    }
  }
}

void examine_spares(Examination& out, const NodeEnv& env) {
  std::error_code unreadable;  // Then there are none.
  std::size_t shells = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(env.run_dir + "/capsules", unreadable))
    shells += capsule::Shell::is_spare(CapsuleId{entry.path().filename()}) ? 1 : 0;
  if (shells > 0)
    out.ok("spare shells", fmt::format("{}", shells));
  else
    out.degraded("spare shells", "none now", "the next capsule waits for its namespaces (15 ms)");
}

void examine_permissions(Examination& out) {
  const auto effective = [] {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2] = {};
    if (syscall(SYS_capget, &header, data) != 0) return std::uint64_t{0};
    return std::uint64_t{data[1].effective} << 32 | data[0].effective;
  }();
  const auto capability = [&](int number, const char* name, const char* instead) {
    if ((effective >> number & 1) != 0)
      out.ok(name);
    else
      out.degraded(name, "not held", instead);
  };
  capability(CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "no capsules can be made here");
  capability(CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "nothing can leave this node");
  capability(CAP_CHECKPOINT_RESTORE, "CAP_CHECKPOINT_RESTORE", "CAP_SYS_ADMIN stands in");
  capability(CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE",
             "limits above the hard ones can't be restored; /proc/PID/limits is read instead");
  capability(CAP_NET_ADMIN, "CAP_NET_ADMIN", "capsules have no network");
  const auto yama = read_file("/proc/sys/kernel/yama/ptrace_scope");
  const std::string scope = yama.ok() ? yama->substr(0, 1) : "absent";
  if (scope == "3")
    out.missing("Yama", "ptrace_scope 3", "nothing can leave this node until reboot");
  else
    out.ok("Yama", "ptrace_scope " + scope);
  const auto lsm = read_file("/sys/kernel/security/lsm");
  out.ok("security modules", lsm.ok() ? *lsm : "unknown (securityfs is not mounted)");
  const auto unprivileged = read_file("/proc/sys/vm/unprivileged_userfaultfd");
  out.ok("unprivileged_userfaultfd", unprivileged.ok() ? unprivileged->substr(0, 1) +
                                                             " (users' programs are tracked with "
                                                             "USER_MODE_ONLY)"
                                                       : "unknown");
}

}  // namespace

Result<api::DoctorReply> examine(const Config& config) {
  api::DoctorReply reply;
  reply.set_node(config.env.node.value);
  utsname name{};
  if (uname(&name) != 0) return os_error("uname");
  reply.set_kernel(name.release);
  Examination out(reply);
  out.ok("processor", fmt::format("{}; XSAVE area {} bytes", sys::cpu_model(), sys::xsave_bytes()));
  examine_memory(out);
  examine_kernel(out);
  examine_processes(out);
  examine_network(out);
  examine_cgroups(out);
  examine_permissions(out);
  examine_spares(out, config.env);
  struct stat fuse {};
  if (stat("/dev/fuse", &fuse) == 0)
    out.ok("FUSE");
  else
    out.degraded("FUSE", "no /dev/fuse", "files must exist on every node");
  for (const char* program : {"godwit-init", "godwit-worker"}) {
    const std::string path = config.env.libexec_dir + "/" + program;
    if (access(path.c_str(), X_OK) == 0)
      out.ok(program, path);
    else
      out.missing(program, path + " can't be executed", "nothing works without it");
  }
  return reply;
}

}  // namespace godwit::daemon
