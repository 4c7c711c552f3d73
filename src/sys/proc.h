// What /proc says about processes, parsed. Absence of a process is Errc::tracee_gone.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace godwit::sys {

// /proc/PID/task/TID/status, as far as it is of use.
struct ProcStatus {
  std::string name;
  char state = '?';
  pid_t tgid = 0;
  pid_t ppid = 0;             // As the reader sees it.
  std::vector<pid_t> ns_pid;  // Of the thread, outermost PID namespace first.
  std::vector<pid_t> ns_tgid;
  std::vector<pid_t> ns_pgid;
  std::vector<pid_t> ns_sid;
  std::uint32_t umask = 0;
  std::uint32_t uids[4] = {};  // Real, effective, saved, file system.
  std::uint32_t gids[4] = {};
  std::vector<std::uint32_t> groups;
  std::uint64_t vm_size_kb = 0, vm_rss_kb = 0, vm_locked_kb = 0;
  int threads = 0;
  pid_t tracer = 0;
  std::uint64_t sig_pending = 0, shared_pending = 0;
  std::uint64_t sig_blocked = 0, sig_ignored = 0, sig_caught = 0;
  std::uint64_t cap_inheritable = 0, cap_permitted = 0, cap_effective = 0, cap_bounding = 0,
                cap_ambient = 0;
  bool no_new_privs = false;
  int seccomp_mode = 0;
  bool thp_enabled = true;
  bool shadow_stack = false;  // x86_Thread_features
};
Result<ProcStatus> read_status(pid_t pid, pid_t tid);
inline Result<ProcStatus> read_status(pid_t pid) { return read_status(pid, pid); }
// From a descriptor of that file, opened before: half the price of opening it (4 us of 9).
Result<ProcStatus> read_status(const UniqueFd& fd);

// /proc/PID/maps.
struct MapEntry {
  std::uint64_t start = 0, end = 0;
  bool read = false, write = false, exec = false, shared = false;
  std::uint64_t offset = 0;
  std::uint32_t dev_major = 0, dev_minor = 0;
  std::uint64_t inode = 0;
  std::string path;  // With " (deleted)" taken off:
  bool deleted = false;

  bool is_special(const char* name) const { return inode == 0 && path == name; }
  std::string map_files_name() const;  // "START-END" as in /proc/PID/map_files.
};
Result<std::vector<MapEntry>> read_maps(pid_t pid);

// smaps: expensive (2.5 us a mapping), so asked for only where flags are needed.
struct SmapsEntry {
  MapEntry map;
  std::vector<std::string> vm_flags;  // Two letters each, Documentation/filesystems/proc.rst.
  std::uint64_t rss_kb = 0, swap_kb = 0, anonymous_kb = 0, locked_kb = 0;
  std::uint32_t protection_key = 0;
  std::uint64_t kernel_page_kb = 4;
  bool has(const char* flag) const;
};
Result<std::vector<SmapsEntry>> read_smaps(pid_t pid);
std::vector<SmapsEntry> parse_smaps(std::string_view text);

// /proc/PID/stat; fields named as in proc(5).
struct ProcStat {
  std::string comm;
  char state = '?';
  pid_t ppid = 0, pgrp = 0, session = 0;
  std::uint64_t tty_nr = 0;
  pid_t tty_group = 0;  // In the foreground of that terminal.
  std::uint64_t utime_ticks = 0, stime_ticks = 0, starttime_ticks = 0;
  int nice = 0, processor = 0;
  std::uint32_t exit_signal = 0;
  std::uint64_t start_code = 0, end_code = 0, start_stack = 0;
  std::uint64_t start_data = 0, end_data = 0, start_brk = 0;
  std::uint64_t arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
  std::uint32_t flags = 0;  // PF_*
  int exit_code = 0;        // Of a zombie: as wait(2) will tell it.
};
Result<ProcStat> read_stat(pid_t pid, pid_t tid);
// The children of all threads, as this node numbers them; also those that have ended and weren't
// waited for. Errc::unsupported: a kernel without CONFIG_PROC_CHILDREN.
Result<std::vector<pid_t>> list_children(pid_t pid);
// Whether the thread (a process: its leader) is on its way out, a zombie or gone.
bool is_exiting(pid_t tid);

struct ProcLimit {
  std::uint32_t resource = 0;        // RLIMIT_*
  std::uint64_t soft = 0, hard = 0;  // RLIM64_INFINITY is ~0.
};
Result<std::vector<ProcLimit>> read_limits(pid_t pid);

// /proc/PID/fdinfo/FD: the common fields, and every line by name (a name may repeat: eventfds,
// inotify, locks).
struct FdInfo {
  std::int64_t pos = 0;
  std::uint32_t flags = 0;  // Octal in the file, O_CLOEXEC included.
  std::uint64_t mount_id = 0, inode = 0;
  std::vector<std::pair<std::string, std::string>> lines;
  const std::string* find(const std::string& name) const;
};
Result<FdInfo> read_fdinfo(pid_t pid, int fd);
Result<std::vector<int>> list_fds(pid_t pid);        // Sorted.
Result<std::vector<pid_t>> list_threads(pid_t pid);  // The leader first.
Result<std::string> read_link(const std::string& path);
// "ipc:[4026531839]" for kind "ipc": equal texts, equal namespaces.
Result<std::string> read_namespace(pid_t pid, pid_t tid, const std::string& kind);

// /proc/PID/task/TID/syscall: what a sleeping thread is waiting in.
struct ProcSyscall {
  bool running = false;  // On a processor, or not in a call: the rest says nothing.
  std::int64_t nr = -1;
  std::uint64_t args[6] = {};
};
Result<ProcSyscall> read_syscall(pid_t pid, pid_t tid);

// A number in a file of /proc/PID; `path` is relative to it.
Result<std::int64_t> read_number(pid_t pid, const std::string& path, int base = 10);
std::string proc_path(pid_t pid, const std::string& rest);
std::string proc_path(pid_t pid, pid_t tid, const std::string& rest);

}  // namespace godwit::sys
