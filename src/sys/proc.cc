#include "sys/proc.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <memory>

#include "base/io.h"

namespace godwit::sys {
namespace {

// Takes fields off the front of a line without copying.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : text_(text) {}
  bool done() const { return text_.empty(); }
  std::string_view rest() const { return text_; }

  std::string_view until(char end) {
    std::size_t at = text_.find(end);
    std::string_view field = text_.substr(0, at);
    text_.remove_prefix(at == std::string_view::npos ? text_.size() : at + 1);
    return field;
  }
  std::string_view word() {
    std::size_t start = text_.find_first_not_of(" \t");
    text_.remove_prefix(start == std::string_view::npos ? text_.size() : start);
    std::size_t end = text_.find_first_of(" \t");
    std::string_view field = text_.substr(0, end);
    text_.remove_prefix(end == std::string_view::npos ? text_.size() : end);
    return field;
  }
  std::string_view trimmed_rest() const {
    std::size_t start = text_.find_first_not_of(" \t");
    return start == std::string_view::npos ? std::string_view() : text_.substr(start);
  }

 private:
  std::string_view text_;
};

template <typename T>
T number(std::string_view text, int base = 10) {
  T value{};
  std::from_chars(text.data(), text.data() + text.size(), value, base);
  return value;
}

template <typename T>
std::vector<T> numbers(std::string_view text) {
  std::vector<T> out;
  for (Cursor c(text);;) {
    std::string_view word = c.word();
    if (word.empty()) return out;
    out.push_back(number<T>(word));
  }
}

// A process that ends while it is read gives ENOENT or ESRCH.
Result<std::string> read_proc(const std::string& path) {
  Result<std::string> text = read_file(path);
  if (text.ok()) return text;
  int error = text.error().sys_errno();
  if (error != ENOENT && error != ESRCH) return text;
  return Error(Errc::tracee_gone, text.error().what(), error);
}

MapEntry parse_map_line(std::string_view line) {
  Cursor c(line);
  MapEntry m;
  m.start = number<std::uint64_t>(c.until('-'), 16);
  m.end = number<std::uint64_t>(c.until(' '), 16);
  std::string_view perms = c.until(' ');
  m.read = perms.starts_with('r');
  m.write = perms.size() > 1 && perms[1] == 'w';
  m.exec = perms.size() > 2 && perms[2] == 'x';
  m.shared = perms.size() > 3 && perms[3] == 's';
  m.offset = number<std::uint64_t>(c.until(' '), 16);
  m.dev_major = number<std::uint32_t>(c.until(':'), 16);
  m.dev_minor = number<std::uint32_t>(c.until(' '), 16);
  m.inode = number<std::uint64_t>(c.until(' '));
  std::string_view path = c.trimmed_rest();
  constexpr std::string_view mark = " (deleted)";
  if (path.ends_with(mark)) {
    m.deleted = true;
    path.remove_suffix(mark.size());
  }
  m.path = path;
  return m;
}

bool is_map_line(std::string_view line) {
  // Field lines of smaps start with a capital letter, map lines with a hexadecimal digit in lower
  // case.
  return !line.empty() && (line[0] < 'A' || line[0] > 'Z');
}

std::uint64_t kilobytes(std::string_view value) {
  return number<std::uint64_t>(Cursor(value).word());
}

void parse_smaps_field(std::string_view line, SmapsEntry& entry) {
  Cursor c(line);
  std::string_view name = c.until(':');
  std::string_view value = c.trimmed_rest();
  if (name == "Rss") entry.rss_kb = kilobytes(value);
  if (name == "Anonymous") entry.anonymous_kb = kilobytes(value);
  if (name == "Swap") entry.swap_kb = kilobytes(value);
  if (name == "Locked") entry.locked_kb = kilobytes(value);
  if (name == "KernelPageSize") entry.kernel_page_kb = kilobytes(value);
  if (name == "ProtectionKey") entry.protection_key = number<std::uint32_t>(value);
  if (name == "VmFlags") {
    for (Cursor flags(value);;) {
      std::string_view flag = flags.word();
      if (flag.empty()) break;
      // Kernels before 6.15 have no letters for what mlock2(MLOCK_ONFAULT) sets, and it alone of
      // those without letters goes with a lock.
      entry.vm_flags.emplace_back(flag == "??" && entry.has("lo") ? std::string_view("lf") : flag);
    }
  }
}

void parse_status_line(std::string_view name, std::string_view value, ProcStatus& s) {
  auto hex = [&](std::uint64_t& out) { out = number<std::uint64_t>(value, 16); };
  auto four = [&](std::uint32_t(&out)[4]) {
    std::vector<std::uint32_t> ids = numbers<std::uint32_t>(value);
    std::copy_n(ids.begin(), std::min<std::size_t>(4, ids.size()), out);
  };
  if (name == "Name")
    s.name = value;
  else if (name == "State")
    s.state = value.empty() ? '?' : value[0];
  else if (name == "Tgid")
    s.tgid = number<pid_t>(value);
  else if (name == "PPid")
    s.ppid = number<pid_t>(value);
  else if (name == "NSpid")
    s.ns_pid = numbers<pid_t>(value);
  else if (name == "NStgid")
    s.ns_tgid = numbers<pid_t>(value);
  else if (name == "NSpgid")
    s.ns_pgid = numbers<pid_t>(value);
  else if (name == "NSsid")
    s.ns_sid = numbers<pid_t>(value);
  else if (name == "Umask")
    s.umask = number<std::uint32_t>(value, 8);
  else if (name == "Uid")
    four(s.uids);
  else if (name == "Gid")
    four(s.gids);
  else if (name == "Groups")
    s.groups = numbers<std::uint32_t>(value);
  else if (name == "VmSize")
    s.vm_size_kb = kilobytes(value);
  else if (name == "VmRSS")
    s.vm_rss_kb = kilobytes(value);
  else if (name == "VmLck")
    s.vm_locked_kb = kilobytes(value);
  else if (name == "Threads")
    s.threads = number<int>(value);
  else if (name == "TracerPid")
    s.tracer = number<pid_t>(value);
  else if (name == "SigPnd")
    hex(s.sig_pending);
  else if (name == "ShdPnd")
    hex(s.shared_pending);
  else if (name == "SigBlk")
    hex(s.sig_blocked);
  else if (name == "SigIgn")
    hex(s.sig_ignored);
  else if (name == "SigCgt")
    hex(s.sig_caught);
  else if (name == "CapInh")
    hex(s.cap_inheritable);
  else if (name == "CapPrm")
    hex(s.cap_permitted);
  else if (name == "CapEff")
    hex(s.cap_effective);
  else if (name == "CapBnd")
    hex(s.cap_bounding);
  else if (name == "CapAmb")
    hex(s.cap_ambient);
  else if (name == "NoNewPrivs")
    s.no_new_privs = value == "1";
  else if (name == "Seccomp")
    s.seccomp_mode = number<int>(value);
  else if (name == "THP_enabled")
    s.thp_enabled = value == "1";
  else if (name == "x86_Thread_features")
    s.shadow_stack = value.find("shstk") != std::string_view::npos;
}

Result<std::vector<int>> list_numeric(const std::string& path) {
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
  if (!dir) {
    int saved = errno;
    Error error = os_error(fmt::format("opendir({})", path), saved);
    if (saved == ENOENT || saved == ESRCH) return Error(Errc::tracee_gone, error.what(), saved);
    return error;
  }
  std::vector<int> out;
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr) break;
    std::string_view name = entry->d_name;
    if (!name.empty() && name[0] >= '0' && name[0] <= '9') out.push_back(number<int>(name));
  }
  if (errno == ENOENT || errno == ESRCH)
    return make_error(Errc::tracee_gone, "readdir({}): it is gone", path);
  if (errno != 0) return os_error(fmt::format("readdir({})", path));
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

std::string proc_path(pid_t pid, const std::string& rest) {
  return fmt::format("/proc/{}/{}", pid, rest);
}
std::string proc_path(pid_t pid, pid_t tid, const std::string& rest) {
  return fmt::format("/proc/{}/task/{}/{}", pid, tid, rest);
}

namespace {

Result<ProcStatus> parse_status(std::string_view text) {
  ProcStatus status;
  for (Cursor lines(text); !lines.done();) {
    Cursor line(lines.until('\n'));
    std::string_view name = line.until(':');
    std::string_view value = line.trimmed_rest();
    while (value.ends_with(' ') || value.ends_with('\t')) value.remove_suffix(1);
    parse_status_line(name, value, status);
  }
  if (status.ns_pid.empty()) return make_error(Errc::unsupported, "/proc/PID/status has no NSpid");
  // A thread whose end overtakes the reader has no number left, in no namespace.
  if (status.ns_pid.front() == 0) return Error(Errc::tracee_gone, "a thread has ended", ESRCH);
  return status;
}

}  // namespace

Result<ProcStatus> read_status(pid_t pid, pid_t tid) {
  std::string text = TRY(read_proc(proc_path(pid, tid, "status")));
  return parse_status(text);
}

Result<ProcStatus> read_status(const UniqueFd& fd) {
  char text[16 * 1024];  // It has about 1.5 KiB, and 20 bytes more for each group.
  ssize_t n = ::pread(fd.get(), text, sizeof text, 0);
  if (n < 0 && errno == ESRCH) return Error(Errc::tracee_gone, "a thread has ended", ESRCH);
  if (n < 0) return os_error("pread(/proc/PID/status)");
  if (static_cast<std::size_t>(n) == sizeof text)
    return make_error(Errc::unsupported, "/proc/PID/status is too long");
  return parse_status(std::string_view(text, static_cast<std::size_t>(n)));
}

std::string MapEntry::map_files_name() const { return fmt::format("{:x}-{:x}", start, end); }

Result<std::vector<MapEntry>> read_maps(pid_t pid) {
  std::string text = TRY(read_proc(proc_path(pid, "maps")));
  std::vector<MapEntry> maps;
  for (Cursor lines(text); !lines.done();) maps.push_back(parse_map_line(lines.until('\n')));
  return maps;
}

bool SmapsEntry::has(const char* flag) const {
  return std::find(vm_flags.begin(), vm_flags.end(), flag) != vm_flags.end();
}

Result<std::vector<SmapsEntry>> read_smaps(pid_t pid) {
  return parse_smaps(TRY(read_proc(proc_path(pid, "smaps"))));
}

std::vector<SmapsEntry> parse_smaps(std::string_view text) {
  std::vector<SmapsEntry> entries;
  for (Cursor lines(text); !lines.done();) {
    std::string_view line = lines.until('\n');
    if (is_map_line(line)) {
      entries.emplace_back().map = parse_map_line(line);
    } else if (!entries.empty()) {
      parse_smaps_field(line, entries.back());
    }
  }
  return entries;
}

Result<ProcStat> read_stat(pid_t pid, pid_t tid) {
  std::string text = TRY(read_proc(proc_path(pid, tid, "stat")));
  // The name is in parentheses and may contain anything, parentheses too: the last one ends it.
  std::size_t open = text.find('('), close = text.rfind(')');
  if (open == std::string::npos || close == std::string::npos)
    return make_error(Errc::unsupported, "/proc/{}/stat: no name in \"{}\"", pid, text);
  ProcStat s;
  s.comm = text.substr(open + 1, close - open - 1);
  Cursor c(std::string_view(text).substr(close + 1));
  std::vector<std::string_view> f(3);  // So that indices are those of proc(5), from 1.
  for (std::string_view w = c.word(); !w.empty(); w = c.word()) f.push_back(w);
  if (f.size() <= 51)
    return make_error(Errc::unsupported, "/proc/{}/stat has {} fields", pid, f.size());
  auto u64 = [&](int i) { return number<std::uint64_t>(f[static_cast<std::size_t>(i)]); };
  auto i32 = [&](int i) { return number<int>(f[static_cast<std::size_t>(i)]); };
  s.state = f[3][0];
  s.ppid = i32(4), s.pgrp = i32(5), s.session = i32(6), s.tty_nr = u64(7), s.tty_group = i32(8);
  s.flags = static_cast<std::uint32_t>(u64(9));
  s.utime_ticks = u64(14), s.stime_ticks = u64(15), s.nice = i32(19), s.starttime_ticks = u64(22);
  s.start_code = u64(26), s.end_code = u64(27), s.start_stack = u64(28);
  s.exit_signal = static_cast<std::uint32_t>(u64(38)), s.processor = i32(39);
  s.start_data = u64(45), s.end_data = u64(46), s.start_brk = u64(47);
  s.arg_start = u64(48), s.arg_end = u64(49), s.env_start = u64(50), s.env_end = u64(51);
  if (f.size() > 52) s.exit_code = i32(52);
  return s;
}

Result<std::vector<pid_t>> list_children(pid_t pid) {
  std::vector<pid_t> children;
  for (pid_t tid : TRY(list_threads(pid))) {
    Result<std::string> text = read_proc(proc_path(pid, tid, "children"));
    if (!text.ok() && is_exiting(tid)) continue;
    if (!text.ok() && text.error().sys_errno() == ENOENT)
      return make_error(Errc::unsupported,
                        "this kernel doesn't list children (CONFIG_PROC_CHILDREN)");
    const std::string numbers = TRY(std::move(text));
    Cursor words(numbers);
    for (std::string_view w = words.word(); !w.empty(); w = words.word())
      children.push_back(number<pid_t>(w));
  }
  return children;
}

bool is_exiting(pid_t tid) {
  constexpr std::uint32_t pf_exiting = 0x00000004;
  Result<ProcStat> stat = read_stat(tid, tid);
  return !stat.ok() || (stat->flags & pf_exiting) != 0;
}

Result<std::vector<ProcLimit>> read_limits(pid_t pid) {
  static constexpr std::pair<std::string_view, std::uint32_t> names[] = {
      {"Max cpu time", RLIMIT_CPU},
      {"Max file size", RLIMIT_FSIZE},
      {"Max data size", RLIMIT_DATA},
      {"Max stack size", RLIMIT_STACK},
      {"Max core file size", RLIMIT_CORE},
      {"Max resident set", RLIMIT_RSS},
      {"Max processes", RLIMIT_NPROC},
      {"Max open files", RLIMIT_NOFILE},
      {"Max locked memory", RLIMIT_MEMLOCK},
      {"Max address space", RLIMIT_AS},
      {"Max file locks", RLIMIT_LOCKS},
      {"Max pending signals", RLIMIT_SIGPENDING},
      {"Max msgqueue size", RLIMIT_MSGQUEUE},
      {"Max nice priority", RLIMIT_NICE},
      {"Max realtime priority", RLIMIT_RTPRIO},
      {"Max realtime timeout", RLIMIT_RTTIME},
  };
  std::string text = TRY(read_proc(proc_path(pid, "limits")));
  std::vector<ProcLimit> limits;
  auto value = [](std::string_view word) {
    return word == "unlimited" ? ~std::uint64_t{0} : number<std::uint64_t>(word);
  };
  for (Cursor lines(text); !lines.done();) {
    std::string_view line = lines.until('\n');
    for (auto& [name, resource] : names) {
      if (!line.starts_with(name)) continue;
      Cursor c(line.substr(name.size()));
      std::uint64_t soft = value(c.word()), hard = value(c.word());
      limits.push_back({resource, soft, hard});
    }
  }
  if (limits.size() != std::size(names))
    return make_error(Errc::unsupported, "/proc/{}/limits: {} of {} limits understood", pid,
                      limits.size(), std::size(names));
  return limits;
}

const std::string* FdInfo::find(const std::string& name) const {
  for (auto& [key, value] : lines)
    if (key == name) return &value;
  return nullptr;
}

Result<FdInfo> read_fdinfo(pid_t pid, int fd) {
  std::string text = TRY(read_proc(proc_path(pid, fmt::format("fdinfo/{}", fd))));
  FdInfo info;
  for (Cursor lines(text); !lines.done();) {
    Cursor line(lines.until('\n'));
    std::string_view name = line.until(':');
    std::string_view value = line.trimmed_rest();
    if (name == "pos") info.pos = number<std::int64_t>(value);
    if (name == "flags") info.flags = number<std::uint32_t>(value, 8);
    if (name == "mnt_id") info.mount_id = number<std::uint64_t>(value);
    if (name == "ino") info.inode = number<std::uint64_t>(value);
    info.lines.emplace_back(name, value);
  }
  return info;
}

Result<std::vector<int>> list_fds(pid_t pid) { return list_numeric(proc_path(pid, "fd")); }

Result<std::vector<pid_t>> list_threads(pid_t pid) {
  std::vector<pid_t> tids = TRY(list_numeric(proc_path(pid, "task")));
  std::stable_partition(tids.begin(), tids.end(), [pid](pid_t tid) { return tid == pid; });
  return tids;
}

Result<std::string> read_namespace(pid_t pid, pid_t tid, const std::string& kind) {
  Result<std::string> link = read_link(proc_path(pid, tid, "ns/" + kind));
  if (link.ok()) return link;
  const int error = link.error().sys_errno();
  if (error != ENOENT && error != ESRCH) return link;
  return Error(Errc::tracee_gone, link.error().what(), error);
}

Result<std::string> read_link(const std::string& path) {
  std::string target(4096, '\0');
  ssize_t n = ::readlink(path.c_str(), target.data(), target.size());
  if (n < 0) return os_error(fmt::format("readlink({})", path));
  target.resize(static_cast<std::size_t>(n));
  return target;
}

Result<ProcSyscall> read_syscall(pid_t pid, pid_t tid) {
  std::string text = TRY(read_proc(proc_path(pid, tid, "syscall")));
  ProcSyscall call;
  Cursor c(text);
  std::string_view nr = c.word();
  if (nr.starts_with("running") || nr.starts_with("-1")) {
    call.running = true;
    return call;
  }
  call.nr = number<std::int64_t>(nr);
  for (std::uint64_t& arg : call.args) {
    std::string_view word = c.word();
    if (word.starts_with("0x")) word.remove_prefix(2);
    arg = number<std::uint64_t>(word, 16);
  }
  return call;
}

Result<std::int64_t> read_number(pid_t pid, const std::string& path, int base) {
  std::string text = TRY(read_proc(proc_path(pid, path)));
  return number<std::int64_t>(Cursor(text).trimmed_rest(), base);
}

}  // namespace godwit::sys
