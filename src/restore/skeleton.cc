#include "restore/skeleton.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "base/guard.h"
#include "base/io.h"
#include "sys/tracing.h"

namespace godwit::restore {
namespace {

constexpr std::uint64_t task_size =
    0x7ffffffff000;  // Nothing is above it without an explicit hint.
constexpr std::uint64_t code_bytes_mapped = 4096;
constexpr std::uint64_t own_bytes = code_bytes_mapped + Arena::bytes;
constexpr std::int64_t reap_limit_us = 200'000;
constexpr std::size_t fds_per_message = 200;  // SCM_MAX_FD is 253.
constexpr unsigned long seize_options =
    PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP;
// SIGTRAP must not be blocked while batches run; everything else must.
constexpr std::uint64_t injection_mask = ~(1ull << (SIGTRAP - 1));

Result<sys::Stop> wait_stopped(pid_t tid, const char* when) {
  sys::Stop stop = TRY(sys::wait_stop(tid, sys::stop_limit_us).with(when));
  if (stop.exited()) {
    return make_error(Errc::tracee_gone, "{}: skeleton thread {} ended (status {:#x})", when, tid,
                      stop.status);
  }
  return stop;
}

bool overlaps(std::uint64_t start, std::uint64_t end, const AddressRange& r) {
  return start < r.end && r.start < end;
}

// The message by which descriptors travel, as the skeleton has it in its memory.
struct ReceiveBuffer {
  msghdr header;
  iovec iov;
  char byte;
  alignas(16) char control[CMSG_SPACE(sizeof(int) * fds_per_message)];
};

ReceiveBuffer receive_buffer_at(std::uint64_t remote) {
  ReceiveBuffer b{};
  b.iov = {reinterpret_cast<void*>(remote + offsetof(ReceiveBuffer, byte)), 1};
  b.header.msg_iov = reinterpret_cast<iovec*>(remote + offsetof(ReceiveBuffer, iov));
  b.header.msg_iovlen = 1;
  b.header.msg_control = reinterpret_cast<void*>(remote + offsetof(ReceiveBuffer, control));
  b.header.msg_controllen = sizeof b.control;
  return b;
}

std::vector<int> fds_in(const ReceiveBuffer& b) {
  const auto* c = reinterpret_cast<const cmsghdr*>(b.control);
  if (b.header.msg_controllen < sizeof(cmsghdr) || c->cmsg_level != SOL_SOCKET ||
      c->cmsg_type != SCM_RIGHTS) {
    return {};
  }
  std::vector<int> fds((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
  std::memcpy(fds.data(), CMSG_DATA(c), fds.size() * sizeof(int));
  return fds;
}

Result<void> send_fds(int channel, std::span<const int> fds) {
  ReceiveBuffer b{};
  char byte = 0;
  iovec iov{&byte, 1};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = b.control;
  header.msg_controllen = CMSG_SPACE(fds.size_bytes());
  cmsghdr* c = CMSG_FIRSTHDR(&header);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(fds.size_bytes());
  std::memcpy(CMSG_DATA(c), fds.data(), fds.size_bytes());
  if (sendmsg(channel, &header, MSG_NOSIGNAL) != 1) return os_error("sendmsg(skeleton channel)");
  return {};
}

Result<void> write_memory(pid_t node_pid, std::uint64_t address, std::span<const std::byte> bytes) {
  iovec local{const_cast<std::byte*>(bytes.data()), bytes.size()};
  iovec remote{reinterpret_cast<void*>(address), bytes.size()};
  ssize_t n = process_vm_writev(node_pid, &local, 1, &remote, 1, 0);
  if (n != static_cast<ssize_t>(bytes.size())) {
    return os_error(
        fmt::format("process_vm_writev({}, {:#x}, {})", node_pid, address, bytes.size()));
  }
  return {};
}

Result<void> read_memory(pid_t node_pid, std::uint64_t address, std::span<std::byte> bytes) {
  iovec local{bytes.data(), bytes.size()};
  iovec remote{reinterpret_cast<void*>(address), bytes.size()};
  ssize_t n = process_vm_readv(node_pid, &local, 1, &remote, 1, 0);
  if (n != static_cast<ssize_t>(bytes.size())) {
    return os_error(
        fmt::format("process_vm_readv({}, {:#x}, {})", node_pid, address, bytes.size()));
  }
  return {};
}

}  // namespace

Result<std::uint64_t> find_gap(std::span<const AddressRange> used, std::uint64_t bytes) {
  constexpr std::uint64_t lowest = 1u << 20;
  std::uint64_t at = lowest, best = 0, best_size = 0;
  auto consider = [&](std::uint64_t end) {
    if (end > at && end - at > best_size) best = at, best_size = end - at;
  };
  for (const AddressRange& r : used) {
    consider(std::min(r.start, task_size));
    at = std::max(at, r.end);
  }
  consider(task_size);
  if (best_size < bytes)
    return make_error(Errc::unsupported, "no free {} bytes of addresses", bytes);
  return (best + (best_size - bytes) / 2) & ~0xfffull;
}

Result<Skeleton> Skeleton::adopt(SkeletonSource::Forked forked, pid_t pid,
                                 std::span<const AddressRange> keep_free) {
  Skeleton s(pid, forked.node_pid, TRY(Arena::create()));
  s.channel_ = std::move(forked.channel);
  s.channel_there_ = forked.channel_there;
  TRY(sys::ptrace_seize(s.node_pid_, PTRACE_O_EXITKILL | seize_options));
  TRY(sys::ptrace_interrupt(s.node_pid_));
  TRY(wait_stopped(s.node_pid_, "seize"));
  TRY(s.open());
  TRY(sys::ptrace_set_sigmask(s.node_pid_, injection_mask));

  rlimit files{};
  if (prlimit(s.node_pid_, RLIMIT_NOFILE, nullptr, &files) != 0) return os_error("prlimit(NOFILE)");
  files.rlim_cur = files.rlim_max;
  if (prlimit(s.node_pid_, RLIMIT_NOFILE, &files, nullptr) != 0) return os_error("prlimit(NOFILE)");

  TRY(s.locate_vdso());
  std::vector<AddressRange> used(keep_free.begin(), keep_free.end());
  used.insert(used.end(), s.vdso_.parts.begin(), s.vdso_.parts.end());
  std::sort(used.begin(), used.end(), [](auto& a, auto& b) { return a.start < b.start; });
  TRY(s.install_arena(TRY(find_gap(used, own_bytes))));
  TRY(s.empty());
  return s;
}

// It is ours, and stands still.
Result<void> Skeleton::open() {
  pidfd_.reset(static_cast<int>(syscall(SYS_pidfd_open, node_pid_, 0)));
  if (!pidfd_) return os_error(fmt::format("pidfd_open({})", node_pid_));
  threads_ = {{pid_, node_pid_}};
  mem_ = TRY(open_fd(fmt::format("/proc/{}/mem", node_pid_), O_RDWR));
  return {};
}

// The child begins in a copy of our address space, with the same code at the same place, but with
// the arena of its parent: until it has its own it executes nothing but calls of the vdso.
Result<Skeleton> Skeleton::fork(pid_t pid, int exit_signal) {
  Arena arena = TRY(Arena::create());
  int raw[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, raw) != 0)
    return os_error("socketpair(skeleton channel)");
  UniqueFd ours(raw[0]), childs(raw[1]);
  const int for_child[] = {childs.get(), arena.fd()};
  const std::vector<int> there = TRY(pass_fds(for_child));
  const pid_t node_pid = TRY(clone(0, exit_signal, pid));
  Skeleton child(pid, node_pid, std::move(arena));
  TRY(child.open());
  child.channel_ = std::move(ours);
  child.channel_there_ = there[0];
  child.vdso_ = vdso_;
  child.syscall_offset_ = syscall_offset_;
  child.code_ = code_;
  child.arena_.set_remote(arena_.remote());
  TRY(child.use_own_arena(there[1]));
  TRY(child.empty());
  TRY(child.clear_fds(child.channel_there_));
  Batch b = batch();
  for (int fd : there) b.call(SYS_close, "close", {static_cast<std::uint64_t>(fd)});
  TRY(run(b));
  return child;
}

Result<void> Skeleton::use_own_arena(int arena_there) {
  const std::uint64_t place = arena_.remote();
  const std::int64_t mapped =
      TRY(single(SYS_mmap, "mmap(arena)",
                 {place, Arena::bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                  static_cast<std::uint64_t>(arena_there), 0}));
  INVARIANT(mapped == static_cast<std::int64_t>(place), "arena at {:#x}", mapped);
  return {};
}

Skeleton::~Skeleton() {
  // Only a skeleton that never ran ends here; if it is gone already, that's what was wanted.
  if (!released_ && pidfd_) (void)end();
}

Result<void> Skeleton::end() {
  released_ = true;
  if (syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH)
    return os_error(fmt::format("pidfd_send_signal({}, SIGKILL)", node_pid_));
  Result<void> first;
  for (auto t = threads_.rbegin(); t != threads_.rend(); ++t) {
    for (;;) {
      auto stop = sys::wait_stop(t->node_tid, reap_limit_us);
      if (!stop.ok() && first.ok()) first = std::move(stop).error();
      if (!stop.ok() || stop->exited()) break;
      if (!sys::ptrace_cont(t->node_tid, 0)) break;
    }
  }
  return first;
}

Result<void> Skeleton::end_as(int wait_status, uid_t uid, const std::string& name) {
  const int signal = wait_status & 0x7f;
  const rlimit no_core{0, 0};
  if (prlimit(node_pid_, RLIMIT_CORE, &no_core, nullptr) != 0) return os_error("prlimit(CORE)");
  Batch b = batch();
  b.call(SYS_prctl, "prctl(PR_SET_NAME)", {PR_SET_NAME, b.put_string(name)});
  b.call(SYS_setresuid, "setresuid", {uid, uid, uid});
  if (signal == 0) {
    b.call(SYS_exit_group, "exit_group", {static_cast<std::uint64_t>(wait_status >> 8)});
    TRY(b.start(node_pid_));
  } else {
    TRY(run(b));
    TRY(sys::ptrace_set_sigmask(node_pid_, 0));
    if (syscall(SYS_pidfd_send_signal, pidfd_.get(), signal, nullptr, 0) != 0)
      return os_error(fmt::format("pidfd_send_signal({}, {})", node_pid_, signal));
    // A fatal one ends it as it is; the others ask us first.
    if (signal != SIGKILL) {
      TRY(sys::ptrace_cont(node_pid_, 0));
      const sys::Stop stop = TRY(wait_stopped(node_pid_, "a signal"));
      if (stop.signal() != signal)
        return make_error(Errc::internal, "skeleton {} stopped with status {:#x}", node_pid_,
                          stop.status);
      TRY(sys::ptrace_cont(node_pid_, signal));
    }
  }
  const sys::Stop last = TRY(sys::wait_stop(node_pid_, sys::stop_limit_us));
  if (!last.exited())
    return make_error(Errc::internal, "skeleton {} didn't end (status {:#x})", node_pid_,
                      last.status);
  released_ = true;
  return {};
}

Result<void> Skeleton::locate_vdso() {
  std::string maps = TRY(read_file(fmt::format("/proc/{}/maps", node_pid_)));
  std::size_t line = 0;
  while (line < maps.size()) {
    std::size_t end = std::min(maps.find('\n', line), maps.size());
    std::string text = maps.substr(line, end - line);
    line = end + 1;
    bool code = text.ends_with("[vdso]");
    if (!code && text.find("[vvar") == std::string::npos) continue;
    unsigned long from = 0, to = 0;
    if (sscanf(text.c_str(), "%lx-%lx", &from, &to) != 2) continue;
    if (vdso_.vvar == 0) vdso_.vvar = from;
    vdso_.parts.push_back({from, to});
    if (code) vdso_.start = from, vdso_.end = to;
  }
  if (vdso_.start == 0) return make_error(Errc::unsupported, "the skeleton has no vdso");
  std::vector<std::byte> image(vdso_.end - vdso_.start);
  TRY(read_memory(node_pid_, vdso_.start, image));
  vdso_.image = TRY(sys::parse_vdso(image));
  for (std::size_t i = 0; i + 1 < image.size(); ++i) {
    if (image[i] == std::byte{0x0f} && image[i + 1] == std::byte{0x05}) {
      syscall_offset_ = i;
      return {};
    }
  }
  return make_error(Errc::unsupported, "no system call instruction in the vdso");
}

// Overwrites frames of the skeleton's stack: the program that they belong to won't go on.
Result<int> Skeleton::receive_first_fd() {
  sys::Regs regs = TRY(sys::ptrace_get_regs(node_pid_));
  // Between the stack pointer and the environment there is room enough in every program.
  std::uint64_t at = (regs.rsp + 15) & ~15ull;
  // Only one descriptor comes, so the rest of the control buffer isn't written to the stack.
  constexpr std::size_t used = offsetof(ReceiveBuffer, control) + CMSG_SPACE(sizeof(int));
  ReceiveBuffer buffer = receive_buffer_at(at);
  buffer.header.msg_controllen = CMSG_SPACE(sizeof(int));
  TRY(write_memory(node_pid_, at, std::as_bytes(std::span(&buffer, 1)).first(used)));
  std::int64_t n = TRY(single(SYS_recvmsg, "recvmsg",
                              {static_cast<std::uint64_t>(channel_there_), at, MSG_CMSG_CLOEXEC}));
  TRY(read_memory(node_pid_, at, std::as_writable_bytes(std::span(&buffer, 1)).first(used)));
  std::vector<int> fds = fds_in(buffer);
  if (n != 1 || fds.size() != 1) {
    return make_error(Errc::internal, "skeleton {} got no arena (recvmsg: {})", node_pid_, n);
  }
  return fds[0];
}

Result<void> Skeleton::install_arena(std::uint64_t place) {
  int fds[] = {arena_.fd()};
  TRY(send_fds(channel_.get(), fds));
  std::uint64_t fd = static_cast<std::uint64_t>(TRY(receive_first_fd()));
  constexpr std::uint64_t no_fd = ~0ull;
  // Not executable and writable at once: some systems refuse that. Ptrace writes read-only pages.
  std::int64_t code = TRY(single(SYS_mmap, "mmap(code)",
                                 {place, code_bytes_mapped, PROT_READ | PROT_EXEC,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, no_fd, 0}));
  std::uint64_t arena_at = place + code_bytes_mapped;
  std::int64_t arena = TRY(single(
      SYS_mmap, "mmap(arena)",
      {arena_at, Arena::bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0}));
  if (code != static_cast<std::int64_t>(place) || arena != static_cast<std::int64_t>(arena_at)) {
    return os_error(fmt::format("mmap in skeleton {} at {:#x}", node_pid_, place),
                    static_cast<int>(code < 0 ? -code : -arena));
  }
  code_ = place;
  arena_.set_remote(arena_at);
  return poke(code_, std::as_bytes(batch_code()));
}

namespace {

void add_sigchld(Batch& b, sighandler_t handler) {
  struct {
    std::uint64_t handler, flags, restorer, mask;
  } action{reinterpret_cast<std::uint64_t>(handler), 0, 0, 0};
  b.call(SYS_rt_sigaction, "rt_sigaction", {SIGCHLD, b.put_value(action), 0, sizeof action.mask});
}

}  // namespace

Result<void> Skeleton::ignore_children(bool on) {
  Batch b = batch();
  add_sigchld(b, on ? SIG_IGN : SIG_DFL);
  return run(b);
}

Result<void> Skeleton::empty() {
  Batch b = batch();
  sys::RseqConfig rseq = TRY(sys::ptrace_get_rseq(node_pid_));
  if (rseq.address != 0) {
    constexpr std::uint64_t unregister = 1;
    b.call(SYS_rseq, "rseq", {rseq.address, rseq.size, unregister, rseq.signature});
  }
  add_sigchld(b, SIG_IGN);
  b.call(SYS_set_robust_list, "set_robust_list", {0, 24});
  b.call(SYS_set_tid_address, "set_tid_address", {0});
  TRY(run(b).with("emptying the skeleton"));
  return unmap_all();
}

Result<void> Skeleton::unmap_all() {
  Batch b = batch();
  std::vector<AddressRange> keep = vdso_.parts;
  keep.push_back({code_, code_ + own_bytes});
  std::sort(keep.begin(), keep.end(), [](auto& x, auto& y) { return x.start < y.start; });
  std::uint64_t at = 0;
  for (const AddressRange& k : keep) {
    if (k.start > at) b.call(SYS_munmap, "munmap", {at, k.start - at});
    at = k.end;
  }
  b.call(SYS_munmap, "munmap", {at, task_size - at});
  return run(b).with("emptying the address space");
}

Result<std::vector<int>> Skeleton::pass_fds(std::span<const int> fds) {
  std::vector<int> there;
  for (std::size_t done = 0; done < fds.size(); done += fds_per_message) {
    auto part = fds.subspan(done, std::min(fds_per_message, fds.size() - done));
    TRY(send_fds(channel_.get(), part));
    Batch b = batch();
    std::uint64_t at = b.reserve(sizeof(ReceiveBuffer));
    ReceiveBuffer buffer = receive_buffer_at(at);
    std::memcpy(arena_.local_at(at - arena_.remote()), &buffer, sizeof buffer);
    b.call(SYS_recvmsg, "recvmsg",
           {static_cast<std::uint64_t>(channel_there_), at, MSG_CMSG_CLOEXEC});
    TRY(run(b));
    std::vector<int> got = fds_in(b.value_at<ReceiveBuffer>(at));
    if (got.size() != part.size()) {
      return make_error(Errc::internal, "skeleton {} got {} of {} descriptors", node_pid_,
                        got.size(), part.size());
    }
    there.insert(there.end(), got.begin(), got.end());
  }
  return there;
}

Result<UniqueFd> Skeleton::fetch_fd(int fd_there) {
  UniqueFd fd(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd_.get(), fd_there, 0)));
  if (!fd) return os_error(fmt::format("pidfd_getfd(skeleton {}, {})", node_pid_, fd_there));
  return fd;
}

Result<void> Skeleton::clear_fds(int channel_at) {
  Batch b = batch();
  auto to = static_cast<std::uint64_t>(channel_at);
  if (channel_there_ != channel_at) {
    b.call(SYS_dup3, "dup3", {static_cast<std::uint64_t>(channel_there_), to, O_CLOEXEC});
  }
  if (to > 0) b.call(SYS_close_range, "close_range", {0, to - 1, 0});
  b.call(SYS_close_range, "close_range", {to + 1, ~0u, 0});
  TRY(run(b));
  channel_there_ = channel_at;
  return {};
}

Result<void> Skeleton::close_channel() {
  Batch b = batch();
  b.call(SYS_close, "close", {static_cast<std::uint64_t>(channel_there_)});
  TRY(run(b));
  channel_there_ = -1;
  channel_.reset();
  return {};
}

Result<void> Skeleton::move_vdso(std::uint64_t from, std::uint64_t to) {
  Batch b = batch();
  for (AddressRange& part : vdso_.parts) {
    std::uint64_t target = part.start - from + to, size = part.end - part.start;
    b.call(SYS_mremap, "mremap(vdso)",
           {part.start, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, target});
    part = {target, target + size};
  }
  TRY(run(b));
  vdso_.start = vdso_.start - from + to;
  vdso_.end = vdso_.end - from + to;
  vdso_.vvar = to;
  return {};
}

Result<void> Skeleton::place_vdso(std::uint64_t start) {
  if (start == vdso_.start) return {};
  std::uint64_t to = start - (vdso_.start - vdso_.vvar), size = vdso_.end - vdso_.vvar;
  if (overlaps(to, to + size, {vdso_.vvar, vdso_.end})) {
    std::vector<AddressRange> used = {{std::min(to, vdso_.vvar), std::max(to + size, vdso_.end)},
                                      {code_, code_ + own_bytes}};
    std::sort(used.begin(), used.end(), [](auto& x, auto& y) { return x.start < y.start; });
    TRY(move_vdso(vdso_.vvar, TRY(find_gap(used, size))));
  }
  return move_vdso(vdso_.vvar, to);
}

AddressRange Skeleton::own_area() const { return {code_, code_ + own_bytes}; }

Result<void> Skeleton::unmap_vdso() {
  Batch b = batch();
  b.call(SYS_munmap, "munmap(vdso)", {vdso_.vvar, vdso_.end - vdso_.vvar});
  return run(b);
}

Result<void> Skeleton::make_room(std::span<const AddressRange> keep_free) {
  bool hit = std::any_of(keep_free.begin(), keep_free.end(),
                         [&](auto& r) { return overlaps(code_, code_ + own_bytes, r); });
  if (!hit) return {};
  std::vector<AddressRange> used(keep_free.begin(), keep_free.end());
  used.push_back({code_, code_ + own_bytes});
  used.push_back({vdso_.vvar, vdso_.end});
  std::sort(used.begin(), used.end(), [](auto& x, auto& y) { return x.start < y.start; });
  std::uint64_t place = TRY(find_gap(used, own_bytes));
  constexpr std::uint64_t how = MREMAP_MAYMOVE | MREMAP_FIXED;
  TRY(single(SYS_mremap, "mremap(code)",
             {code_, code_bytes_mapped, code_bytes_mapped, how, place}));
  TRY(single(SYS_mremap, "mremap(arena)",
             {arena_.remote(), Arena::bytes, Arena::bytes, how, place + code_bytes_mapped}));
  code_ = place;
  arena_.set_remote(place + code_bytes_mapped);
  return {};
}

Result<void> Skeleton::set_threads(std::span<const pid_t> tids) {
  INVARIANT(!tids.empty() && tids[0] == pid_, "pid={}", pid_);
  std::vector<Thread> kept;
  for (const Thread& t : threads_) {
    if (std::find(tids.begin(), tids.end(), t.tid) != tids.end()) {
      kept.push_back(t);
    } else {
      TRY(end_thread(t));
    }
  }
  threads_ = std::move(kept);
  for (pid_t tid : tids) {
    bool exists =
        std::any_of(threads_.begin(), threads_.end(), [&](auto& t) { return t.tid == tid; });
    if (!exists) TRY(create_thread(tid).with(fmt::format("thread {}", tid)));
  }
  auto rank = [&](const Thread& t) { return std::find(tids.begin(), tids.end(), t.tid); };
  std::sort(threads_.begin(), threads_.end(),
            [&](const Thread& a, const Thread& b) { return rank(a) < rank(b); });
  return {};
}

Result<void> Skeleton::create_thread(pid_t tid) {
  constexpr std::uint64_t flags =
      CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  const pid_t node_tid = TRY(clone(flags, 0, tid));
  threads_.push_back({tid, node_tid});
  return sys::ptrace_set_sigmask(node_tid, injection_mask);
}

// The answer is the new task as this node sees it: ours, in its first stop.
Result<pid_t> Skeleton::clone(std::uint64_t flags, int exit_signal, pid_t tid) {
  Batch b = batch();
  clone_args args{};
  args.flags = flags;
  args.exit_signal = static_cast<std::uint64_t>(exit_signal);
  args.set_tid = b.put_value(tid);
  args.set_tid_size = 1;
  std::size_t made = b.call(SYS_clone3, "clone3", {b.put_value(args), sizeof args});
  TRY(b.start(node_pid_));
  sys::Stop stop = TRY(wait_stopped(node_pid_, "clone3"));
  if (stop.event() != PTRACE_EVENT_CLONE && stop.event() != PTRACE_EVENT_FORK) {
    // It failed, so the batch is at its end already.
    sys::Regs regs = TRY(sys::ptrace_get_regs(node_pid_));
    return os_error(fmt::format("clone3(set_tid={})", tid),
                    static_cast<int>(-static_cast<std::int64_t>(regs.rax)));
  }
  unsigned long child = 0;
  if (ptrace(PTRACE_GETEVENTMSG, node_pid_, nullptr, &child) != 0) {
    return os_error(fmt::format("ptrace(GETEVENTMSG, {})", node_pid_));
  }
  TRY(wait_stopped(static_cast<pid_t>(child), "new task"));
  TRY(sys::ptrace_cont(node_pid_, 0));
  TRY(b.wait(node_pid_));
  INVARIANT(b.result(made) == tid, "clone3 made {} for {}", b.result(made), tid);
  return static_cast<pid_t>(child);
}

Result<void> Skeleton::end_thread(const Thread& thread) {
  Batch b = batch(1);
  b.call(SYS_exit, "exit", {0});
  TRY(b.start(thread.node_tid));
  sys::Stop stop = TRY(sys::wait_stop(thread.node_tid, sys::stop_limit_us).with("ending a thread"));
  if (!stop.exited()) {
    return make_error(Errc::internal, "skeleton thread {} didn't exit (status {:#x})", thread.tid,
                      stop.status);
  }
  return {};
}

Result<std::int64_t> Skeleton::single(long nr, const char* name,
                                      std::initializer_list<std::uint64_t> args) {
  std::uint64_t a[6] = {};
  std::copy(args.begin(), args.end(), a);
  sys::Regs regs = TRY(sys::ptrace_get_regs(node_pid_));
  regs.rip = vdso_.start + syscall_offset_;
  regs.rax = static_cast<std::uint64_t>(nr);
  regs.orig_rax = ~0ull;
  regs.rdi = a[0], regs.rsi = a[1], regs.rdx = a[2], regs.r10 = a[3], regs.r8 = a[4],
  regs.r9 = a[5];
  TRY(sys::ptrace_set_regs(node_pid_, regs));
  for (int stops = 0; stops < 2; ++stops) {  // Entry and exit.
    TRY(sys::ptrace_syscall(node_pid_, 0));
    sys::Stop stop = TRY(wait_stopped(node_pid_, name));
    if (!stop.at_syscall()) {
      return make_error(Errc::internal, "{}: skeleton {} stopped with status {:#x}", name,
                        node_pid_, stop.status);
    }
  }
  regs = TRY(sys::ptrace_get_regs(node_pid_));
  auto result = static_cast<std::int64_t>(regs.rax);
  if (result < 0 && result > -4096) {
    return os_error(
        fmt::format("{}({:#x}, {:#x}, {:#x}) in skeleton {}", name, a[0], a[1], a[2], node_pid_),
        static_cast<int>(-result));
  }
  return result;
}

// From a system call stop to an event stop, without an instruction in between: the interrupt is
// pending when the thread goes on, and the kernel looks before it returns to user mode.
Result<void> Skeleton::park(pid_t node_tid) {
  TRY(sys::ptrace_interrupt(node_tid));
  TRY(sys::ptrace_cont(node_tid, 0));
  sys::Stop stop = TRY(wait_stopped(node_tid, "park"));
  if (stop.event() != PTRACE_EVENT_STOP) {
    return make_error(Errc::internal, "skeleton {} stopped with status {:#x} instead of parking",
                      node_tid, stop.status);
  }
  return {};
}

Result<void> Skeleton::remove_traces() {
  TRY(single(SYS_munmap, "munmap(arena)", {code_, own_bytes}));
  return park(node_pid_);
}

// SIGSTOP gets through whatever is blocked; we may turn it into another one while it is delivered.
// No thread executes an instruction: each looks for signals and stops before it would.
Result<void> Skeleton::stop_by(int signal) {
  TRY(sys::ptrace_set_sigmask(node_pid_, injection_mask & ~(1ull << (signal - 1))));
  if (syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGSTOP, nullptr, 0) != 0)
    return os_error(fmt::format("pidfd_send_signal({}, SIGSTOP)", node_pid_));
  TRY(sys::ptrace_cont(node_pid_, 0));
  sys::Stop stop = TRY(wait_stopped(node_pid_, "SIGSTOP"));
  if (!stop.at_signal() || stop.signal() != SIGSTOP)
    return make_error(Errc::internal, "skeleton {} stopped with status {:#x} for SIGSTOP",
                      node_pid_, stop.status);
  TRY(sys::ptrace_cont(node_pid_, signal));
  for (const Thread& thread : threads_) {
    if (thread.node_tid != node_pid_) TRY(sys::ptrace_cont(thread.node_tid, 0));
    stop = TRY(wait_stopped(thread.node_tid, "a group stop"));
    if (!stop.is_interrupt() || stop.signal() != signal)
      return make_error(Errc::unsupported, "signal {} doesn't stop process {} here", signal, pid_);
  }
  return {};
}

Result<void> Skeleton::poke(std::uint64_t address, std::span<const std::byte> bytes) {
  ssize_t n = pwrite(mem_.get(), bytes.data(), bytes.size(), static_cast<off_t>(address));
  if (n != static_cast<ssize_t>(bytes.size())) {
    return os_error(
        fmt::format("pwrite(/proc/{}/mem, {:#x}, {})", node_pid_, address, bytes.size()));
  }
  return {};
}

Result<void> Skeleton::disarm_exit_kill() {
  for (const Thread& t : threads_) TRY(sys::ptrace_set_options(t.node_tid, seize_options));
  return {};
}

Result<void> Skeleton::release() {
  released_ = true;
  Result<void> first;
  for (const Thread& t : threads_) {
    auto detached = sys::ptrace_detach(t.node_tid, 0);
    if (!detached && first.ok()) first = std::move(detached);
  }
  return first;
}

}  // namespace godwit::restore
