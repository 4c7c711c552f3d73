// What can't move is said before anything is touched, by name, all of it at once: everything that
// isn't known to be covered is refused. A few things show only from inside the process (Landlock,
// keyrings, AMX permission, a local descriptor table, syscall user dispatch): see
// preflight_inside.cc.

#include "capture/describe.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "base/io.h"
#include "capture/describe_files.h"
#include "capture/describe_objects.h"
#include "capture/preflight_ipc.h"
#include "sys/pagemap.h"
#include "sys/pidfd.h"
#include "sys/protection_keys.h"
#include "sys/thread_attr.h"
#include "sys/tracing.h"

namespace godwit::capture {
namespace {

constexpr std::uint32_t pf_io_worker = 0x00000010;
constexpr std::uint64_t user_addresses_end = 0x7ffffffff000;  // With four-level page tables.
constexpr int exec_looks_max = 100;
constexpr timespec exec_pause{0, 1'000'000};
constexpr long mqueue_magic = 0x19800202;

class Reasons {
 public:
  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    list_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }
  void take_over(Reasons&& others) {
    list_.insert(list_.end(), std::make_move_iterator(others.list_.begin()),
                 std::make_move_iterator(others.list_.end()));
  }
  bool empty() const { return list_.empty(); }
  std::vector<std::string> take() && { return std::move(list_); }

 private:
  std::vector<std::string> list_;
};

// In words, what "anon_inode:NAME" or another link without a path stands for; empty: none of these.
std::string anonymous_kind(const std::string& link) {
  static const std::map<std::string, std::string> names = {
      {"[io_uring]", "an io_uring"},
      {"[perf_event]", "a perf event"},
      {"[userfaultfd]", "a userfaultfd"},
      {"inotify", "an inotify instance"},
      {"[fanotify]", "a fanotify group"},
      {"bpf-map", "a BPF map"},
      {"bpf-prog", "a BPF program"},
      {"bpf_link", "a BPF link"},
      {"[landlock-ruleset]", "a Landlock ruleset"},
      {"seccomp notify", "a seccomp listener"},
  };
  constexpr std::string_view prefix = "anon_inode:";
  if (link.starts_with("mnt:") || link.starts_with("net:") || link.starts_with("user:") ||
      link.starts_with("pid:") || link.starts_with("uts:") || link.starts_with("ipc:") ||
      link.starts_with("time:") || link.starts_with("cgroup:"))
    return "a namespace";
  if (!link.starts_with(prefix)) return "";
  const std::string name = link.substr(prefix.size());
  auto known = names.find(name);
  return known != names.end() ? known->second : fmt::format("an anonymous file ({})", name);
}

Result<void> check_descriptor(const TreeRef& tree, pid_t pid, pid_t inside, int fd,
                              Reasons& reasons) {
  const std::string place = sys::proc_path(pid, fmt::format("fd/{}", fd));
  std::string link = TRY(sys::read_link(place));
  struct stat st {};
  if (::stat(place.c_str(), &st) != 0) return os_error(fmt::format("stat({})", place));
  if (stdio_stream(tree.stdio, st) >= 0) return {};
  if (object_kind(link) != image::OpenFile::REGULAR) return {};
  if (std::string kind = anonymous_kind(link); !kind.empty()) {
    reasons.add("descriptor {} of process {} is {}, which can't move yet", fd, inside, kind);
    return {};
  }
  sys::FdInfo info = TRY(sys::read_fdinfo(pid, fd));
  if (S_ISCHR(st.st_mode) && !is_plain_device(st))
    reasons.add("descriptor {} of process {} is the device {}", fd, inside, link);
  if (S_ISBLK(st.st_mode))
    reasons.add("descriptor {} of process {} is the block device {}", fd, inside, link);
  // Pipes move; whether one has an end outside shows when the tree stands still
  // (preflight_inside.cc).
  const bool travels = link.starts_with("/tmp/") || link.starts_with("/dev/shm/");
  if (S_ISFIFO(st.st_mode) && !(info.flags & O_PATH) && !link.starts_with("pipe:") &&
      (!travels || link.ends_with(" (deleted)")))
    reasons.add("descriptor {} of process {} is the fifo {}, which can't move yet", fd, inside,
                link);
  struct statfs system {};
  if (S_ISREG(st.st_mode) && ::statfs(place.c_str(), &system) == 0 && system.f_type == mqueue_magic)
    reasons.add("descriptor {} of process {} is the POSIX message queue {}, which can't move yet",
                fd, inside, link);
  if (link.starts_with("/secretmem"))
    reasons.add("descriptor {} of process {} is secret memory", fd, inside);
  if (link.starts_with("/memfd:") && st.st_blksize > 4096)
    reasons.add("descriptor {} of process {} is a memfd of huge pages, which can't move yet", fd,
                inside);
  if (info.find("lock") != nullptr)
    reasons.add("descriptor {} of process {} holds a lock on {}, which can't move yet", fd, inside,
                link);
  return {};
}

void check_mapping(const sys::SmapsEntry& entry, pid_t inside, Reasons& reasons) {
  const sys::MapEntry& map = entry.map;
  const bool kernels_own = map.is_special("[vdso]") || map.is_special("[vvar]") ||
                           map.is_special("[vvar_vclock]") || map.path == "[vsyscall]";
  if (kernels_own) return;
  const std::string name = map.path.empty() ? "anonymous memory" : map.path;
  auto refuse = [&](const char* what) {
    reasons.add("the mapping of {} at {:#x} in process {} {}", name, map.start, inside, what);
  };
  if (map.path.starts_with("/secretmem"))
    refuse("is secret memory");
  else if (map.path.starts_with("/SYSV"))
    refuse("is a System V segment, which can't move yet");
  else if (map.path.starts_with("/[aio]"))
    refuse("belongs to asynchronous I/O (io_setup), which can't move yet");
  else if (map.path.starts_with("anon_inode:"))
    refuse("belongs to an io_uring, perf event or the like");
  else if (entry.has("io") || entry.has("pf"))
    refuse("is device memory");
  else if (entry.has("ht"))
    refuse("is of hugetlbfs, which can't move yet");
  if (entry.has("sl")) refuse("is sealed (mseal), which can't move yet");
  if (entry.has("ss")) refuse("is a shadow stack");
  if (entry.has("um") || entry.has("uw") || entry.has("ui"))
    refuse("is registered with a userfaultfd");
  const std::uint32_t prot =
      (map.read ? PROT_READ : 0) | (map.write ? PROT_WRITE : 0) | (map.exec ? PROT_EXEC : 0);
  if (entry.protection_key != 0 && !sys::is_execute_only_key(entry.protection_key, prot))
    refuse("has a protection key, which can't move yet");
}

// No area of their own shows them, only the page tables.
Result<void> check_guard_pages(pid_t pid, pid_t inside, Reasons& reasons) {
  if (!sys::pagemap_guard_supported()) return {};
  UniqueFd pagemap = TRY(sys::open_pagemap(pid));
  std::vector<sys::PageRegion> found;
  TRY(sys::pagemap_scan(pagemap.get(),
                        {.start = 0,
                         .end = user_addresses_end,
                         .required = sys::page_guard,
                         .returned = sys::page_guard},
                        found));
  if (!found.empty())
    reasons.add("process {} has guard pages at {:#x} (MADV_GUARD_INSTALL), which can't move yet",
                inside, found.front().start);
  return {};
}

Result<void> check_namespaces(const TreeRef& tree, pid_t pid, pid_t tid, pid_t inside,
                              Reasons& reasons) {
  if (tree.init_pid == 0) return {};
  // Not the cgroup namespace: the capsule's program has one whose root is the tree's own group,
  // init stays outside of it.
  for (const char* name : {"mnt", "net", "pid", "uts", "ipc", "user"}) {
    const std::string theirs = TRY(sys::read_namespace(pid, tid, name));
    const std::string capsules = TRY(sys::read_namespace(tree.init_pid, tree.init_pid, name));
    if (theirs != capsules)
      reasons.add("thread {} of process {} is in a {} namespace of its own", tid, inside, name);
  }
  return {};
}

Result<void> check_thread(const TreeRef& tree, pid_t pid, pid_t tid, Reasons& reasons) {
  sys::ProcStatus s = TRY(sys::read_status(pid, tid));
  const pid_t inside = s.ns_tgid.back(), tid_inside = s.ns_pid.back();
  auto refuse = [&](const std::string& what) {
    reasons.add("thread {} ({}) of process {} {}", tid_inside, s.name, inside, what);
  };
  if (s.state == 'Z' || s.state == 'X') {
    refuse("has ended, and others go on without it, which can't move yet");
    return {};
  }
  if (s.tracer != 0 && !sys::is_our_tracee(tid))
    refuse(fmt::format("is traced by process {}", s.tracer));
  if (s.shadow_stack) refuse("has a shadow stack");
  if (TRY(sys::read_stat(pid, tid)).flags & pf_io_worker)
    refuse("is a kernel worker of an io_uring");
  if (TRY(sys::read_core_cookie(tid)) != 0) refuse("uses core scheduling, which can't move yet");
  TRY(check_namespaces(tree, pid, tid, inside, reasons));
  if (tid == pid) return {};
  const std::pair<sys::KcmpType, const char*> shared[] = {
      {sys::KcmpType::files, "descriptors"}, {sys::KcmpType::fs, "a working directory or umask"}};
  for (auto& [type, what] : shared)
    if (TRY(sys::kcmp(pid, tid, type)) != 0)
      refuse(fmt::format("has {} of its own (unshare), which can't move yet", what));
  return {};
}

// Threads come and go. One on its way out has left its descriptors and namespaces already, which
// looks like having others; the end of the first one, which stays as a zombie, is a reason.
Result<void> check_threads(const TreeRef& tree, pid_t pid, Reasons& reasons) {
  for (pid_t tid : TRY(sys::list_threads(pid))) {
    Reasons of_thread;
    Result<void> checked = check_thread(tree, pid, tid, of_thread);
    if (tid != pid && !(checked.ok() && of_thread.empty()) && sys::is_exiting(tid)) continue;
    TRY(std::move(checked));
    reasons.take_over(std::move(of_thread));
  }
  return {};
}

// "7f2c4000 bind:0 anon=1 ...": policies of areas (mbind) show nowhere else. Where an area has
// none, the one of the process is shown: so of the vdso, which nobody binds.
Result<void> check_memory_policies(pid_t pid, pid_t inside, std::uint64_t vdso, Reasons& reasons) {
  Result<std::string> text = read_file(sys::proc_path(pid, "numa_maps"));
  if (!text.ok()) {
    if (text.error().sys_errno() == ENOENT) return {};  // A kernel without memory policies.
    return std::move(text).error();
  }
  std::istringstream lines(*text);
  std::string line, usual;
  std::vector<std::pair<std::uint64_t, std::string>> areas;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::uint64_t start = 0;
    std::string policy;
    words >> std::hex >> start >> policy;
    if (start == vdso) usual = policy;
    areas.emplace_back(start, policy);
  }
  for (const auto& [start, policy] : areas)
    if (!usual.empty() && policy != usual)
      reasons.add(
          "the mapping at {:#x} in process {} has a memory policy of its own ({}), which can't "
          "move yet",
          start, inside, policy);
  return {};
}

Result<void> check_security(pid_t pid, pid_t inside, Reasons& reasons) {
  Result<std::string> label =
      read_file(sys::proc_path(pid, "attr/current"));  // EINVAL without an LSM.
  if (!label.ok()) return {};
  std::string text = label->c_str();
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  if (!text.empty() && text != "unconfined" && text != "kernel")
    reasons.add("process {} is confined by a security module ({})", inside, text);
  return {};
}

// In the middle of exec(2) a process has a stack and no more; the vdso comes last.
Result<std::vector<sys::SmapsEntry>> settled_mappings(pid_t pid) {
  for (int looks = 1;; ++looks) {
    std::vector<sys::SmapsEntry> mappings = TRY(sys::read_smaps(pid));
    const bool settled =
        std::any_of(mappings.begin(), mappings.end(),
                    [](const sys::SmapsEntry& entry) { return entry.map.is_special("[vdso]"); });
    if (settled || looks == exec_looks_max) return mappings;
    ::nanosleep(&exec_pause, nullptr);
  }
}

Result<void> check_process(const TreeRef& tree, pid_t pid, Reasons& reasons) {
  const pid_t inside = TRY(sys::read_status(pid)).ns_tgid.back();
  unsigned char elf_class = 0;
  UniqueFd exe = TRY(open_fd(sys::proc_path(pid, "exe"), O_RDONLY));
  if (::pread(exe.get(), &elf_class, 1, 4) == 1 && elf_class != 2)
    reasons.add("process {} is a 32-bit program, which can't move", inside);
  TRY(check_threads(tree, pid, reasons));
  for (int fd : TRY(sys::list_fds(pid))) {
    Result<void> checked = check_descriptor(tree, pid, inside, fd, reasons);
    // Closed since it was listed.
    if (!checked.ok() && checked.error().sys_errno() != ENOENT) return checked;
  }
  std::uint64_t vdso = 0;
  const std::vector<sys::SmapsEntry> mappings = TRY(settled_mappings(pid));
  for (const sys::SmapsEntry& entry : mappings) {
    check_mapping(entry, inside, reasons);
    if (entry.map.is_special("[vdso]")) vdso = entry.map.start;
  }
  TRY(check_guard_pages(pid, inside, reasons));
  if (vdso == 0) reasons.add("process {} has no [vdso], where injected calls are executed", inside);
  TRY(check_memory_policies(pid, inside, vdso, reasons));
  const pid_t usual = tree.init_pid != 0 ? tree.init_pid : ::getpid();
  if (TRY(sys::read_link(sys::proc_path(pid, "root"))) !=
      TRY(sys::read_link(sys::proc_path(usual, "root"))))
    reasons.add("process {} has changed its root directory, which can't move yet", inside);
  return check_security(pid, inside, reasons);
}

// Two of them that share something; none: {0, 0}. kcmp(2) tells an order, so each is compared with
// a few.
Result<std::pair<pid_t, pid_t>> find_sharing(const std::set<pid_t>& pids, sys::KcmpType type) {
  std::vector<pid_t> sorted;
  for (pid_t pid : pids) {
    auto low = sorted.begin(), high = sorted.end();
    bool skipped = false;
    while (low < high && !skipped) {
      const auto middle = low + (high - low) / 2;
      Result<int> order = sys::kcmp(pid, *middle, type);
      skipped = !order.ok();
      if (skipped && order.error().code() != Errc::tracee_gone) return std::move(order).error();
      if (skipped) continue;
      // Whoever is on its way out has nothing left, which looks like having the same.
      if (*order == 0 && !sys::is_exiting(pid) && !sys::is_exiting(*middle))
        return std::pair(*middle, pid);
      skipped = *order == 0;
      (*order == 1 ? high : low) = *order == 1 ? middle : middle + 1;
    }
    if (!skipped) sorted.insert(low, pid);
  }
  return std::pair<pid_t, pid_t>(0, 0);
}

// What threads share processes may share as well (clone(2)). Between vfork(2) and exec(2) all do,
// for a moment.
Result<void> check_sharing(const std::set<pid_t>& pids, Reasons& reasons) {
  const std::pair<sys::KcmpType, const char*> parts[] = {
      {sys::KcmpType::vm, "memory"},
      {sys::KcmpType::files, "descriptors"},
      {sys::KcmpType::fs, "a working directory and umask"},
      {sys::KcmpType::sighand, "signal handlers"}};
  for (const auto& [type, what] : parts) {
    std::pair<pid_t, pid_t> found = TRY(find_sharing(pids, type));
    for (int looks = 1; found.first != 0 && looks < exec_looks_max; ++looks) {
      ::nanosleep(&exec_pause, nullptr);
      found = TRY(find_sharing(pids, type));
    }
    if (found.first == 0) continue;
    Result<sys::ProcStatus> one = sys::read_status(found.first);
    Result<sys::ProcStatus> other = sys::read_status(found.second);
    if (!one.ok() || !other.ok()) continue;
    reasons.add("processes {} ({}) and {} ({}) share {}, which can't move yet", one->ns_tgid.back(),
                one->name, other->ns_tgid.back(), other->name, what);
  }
  return {};
}

Result<std::set<pid_t>> tree_pids(const TreeRef& tree) {
  std::set<pid_t> pids;
  for (pid_t tid : TRY(list_tree_threads(tree))) {
    Result<sys::ProcStatus> status = sys::read_status(tid);
    if (!status.ok() && status.error().code() == Errc::tracee_gone) continue;
    pids.insert(TRY(std::move(status)).tgid);
  }
  return pids;
}

}  // namespace

Result<std::vector<std::string>> preflight(const TreeRef& tree) {
  const std::set<pid_t> pids = TRY(tree_pids(tree));
  std::vector<std::string> reasons = TRY(preflight(tree, pids));
  if (reasons.empty() && std::all_of(pids.begin(), pids.end(), sys::is_exiting))
    reasons.push_back("the program has ended");
  if (tree.init_pid != 0)
    for (std::string& reason : TRY(ipc_reasons(tree.init_pid)))
      reasons.push_back(std::move(reason));
  return reasons;
}

Result<std::vector<std::string>> preflight(const TreeRef& tree, const std::set<pid_t>& pids) {
  Reasons reasons;
  TRY(check_sharing(TRY(tree_pids(tree)), reasons));  // With whomever.
  for (pid_t pid : pids) {
    // Where the leader has ended and others go on, /proc/PID has neither exe nor mm nor
    // descriptors; and a skeleton whose leader ends before its threads are made isn't covered.
    if (Result<sys::ProcStatus> leader = sys::read_status(pid);
        leader.ok() && leader->state == 'Z' && leader->threads > 1) {
      reasons.add("the main thread of process {} has ended while others go on",
                  leader->ns_tgid.back());
      continue;
    }
    Reasons of_process;
    Result<void> checked = check_process(tree, pid, of_process);
    // One that ends while it is looked at fails in as many ways as there are ways to look.
    if (sys::is_exiting(pid)) continue;
    TRY(std::move(checked));
    reasons.take_over(std::move(of_process));
  }
  return std::move(reasons).take();
}

}  // namespace godwit::capture
