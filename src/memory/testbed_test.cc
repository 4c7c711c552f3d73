#include "memory/testbed.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <future>
#include <map>

#include "base/clock.h"
#include "base/ids.h"
#include "base/io.h"
#include "memory/scan.h"
#include "sys/memory_io.h"

// A syscall instruction at a known address, in every child.
asm(R"(
    .text
    .globl testbed_syscall_instruction
testbed_syscall_instruction:
    syscall
    int3
)");
extern "C" const char testbed_syscall_instruction[];

namespace godwit::memory::testing {

#define CHECK_OR_DIE(cond) INVARIANT(cond, "errno={}", errno)

Child Child::run(const std::function<int()>& body) {
  Child child;
  child.pid_ = ::fork();
  CHECK_OR_DIE(child.pid_ >= 0);
  if (child.pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::_exit(body());
  }
  return child;
}

Child Child::skeleton() {
  Child child = run([] {
    while (true) ::pause();
    return 0;
  });
  child.stop();
  // Else the kernel writes the processor's number into its thread area.
  __ptrace_rseq_configuration rseq{};
  CHECK_OR_DIE(::ptrace(PTRACE_GET_RSEQ_CONFIGURATION, child.pid_, sizeof rseq, &rseq) > 0);
  if (rseq.rseq_abi_pointer != 0)
    INVARIANT(child.inject(SYS_rseq, static_cast<long>(rseq.rseq_abi_pointer),
                           static_cast<long>(rseq.rseq_abi_size), 1, rseq.signature) == 0,
              "rseq unregister");
  // What it inherited from the test isn't the program's; its code needs none of it any more.
  const MapsView maps = read_areas(child.pid_).value();
  for (const Area& area : maps.content)
    child.inject(SYS_madvise, static_cast<long>(area.start),
                 static_cast<long>(area.end - area.start), MADV_DONTNEED);
  return child;
}

Child::Child(Child&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), threads_(std::move(other.threads_)) {}

Child::~Child() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  // Traced threads are reaped one by one, the leader last.
  while (::waitpid(-1, nullptr, __WALL | WNOHANG) > 0) {
  }
  int status;
  while (::waitpid(pid_, &status, __WALL) == pid_ && !WIFEXITED(status) && !WIFSIGNALED(status)) {
  }
}

void Child::stop() {
  INVARIANT(threads_.empty(), "stopped already");
  for (bool found_new = true; found_new;) {
    found_new = false;
    DIR* tasks = ::opendir(fmt::format("/proc/{}/task", pid_).c_str());
    CHECK_OR_DIE(tasks != nullptr);
    while (dirent* entry = ::readdir(tasks)) {
      const pid_t tid = std::atoi(entry->d_name);
      if (tid == 0 || std::find(threads_.begin(), threads_.end(), tid) != threads_.end()) continue;
      CHECK_OR_DIE(::ptrace(PTRACE_SEIZE, tid, 0, 0) == 0);
      CHECK_OR_DIE(::ptrace(PTRACE_INTERRUPT, tid, 0, 0) == 0);
      int status;
      CHECK_OR_DIE(::waitpid(tid, &status, __WALL) == tid);
      if (tid == pid_)
        threads_.insert(threads_.begin(), tid);
      else
        threads_.push_back(tid);
      found_new = true;
    }
    ::closedir(tasks);
  }
}

void Child::go() {
  for (pid_t tid : threads_) CHECK_OR_DIE(::ptrace(PTRACE_DETACH, tid, 0, 0) == 0);
  threads_.clear();
}

user_regs_struct Child::registers() const {
  user_regs_struct regs;
  CHECK_OR_DIE(::ptrace(PTRACE_GETREGS, pid_, 0, &regs) == 0);
  return regs;
}

void Child::set_registers(const user_regs_struct& regs) {
  CHECK_OR_DIE(::ptrace(PTRACE_SETREGS, pid_, 0, &regs) == 0);
}

long Child::inject(long nr, long a, long b, long c, long d, long e, long f) {
  const user_regs_struct before = registers();
  user_regs_struct regs = before;
  regs.rip = reinterpret_cast<unsigned long long>(testbed_syscall_instruction);
  regs.rax = static_cast<unsigned long long>(nr);
  regs.orig_rax = static_cast<unsigned long long>(-1);
  regs.rdi = static_cast<unsigned long long>(a);
  regs.rsi = static_cast<unsigned long long>(b);
  regs.rdx = static_cast<unsigned long long>(c);
  regs.r10 = static_cast<unsigned long long>(d);
  regs.r8 = static_cast<unsigned long long>(e);
  regs.r9 = static_cast<unsigned long long>(f);
  set_registers(regs);
  int status = 0;
  do {
    CHECK_OR_DIE(::ptrace(PTRACE_SINGLESTEP, pid_, 0, 0) == 0);
    CHECK_OR_DIE(::waitpid(pid_, &status, __WALL) == pid_);
    INVARIANT(WIFSTOPPED(status), "status {:#x}", status);
  } while (WSTOPSIG(status) != SIGTRAP);
  const long result = static_cast<long>(registers().rax);
  set_registers(before);
  return result;
}

UniqueFd Child::take_fd(int number) {
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  CHECK_OR_DIE(pidfd.valid());
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), number, 0)));
  CHECK_OR_DIE(fd.valid());
  return fd;
}

UniqueFd Child::make_uffd() {
  const long fd = inject(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  INVARIANT(fd >= 0, "userfaultfd: {}", fd);
  UniqueFd ours = take_fd(static_cast<int>(fd));
  INVARIANT(inject(SYS_close, fd) == 0, "close");
  return ours;
}

int Child::wait_exit() {
  int status;
  CHECK_OR_DIE(::waitpid(pid_, &status, __WALL) == pid_);
  if (!WIFEXITED(status) && !WIFSIGNALED(status)) return -2;
  pid_ = -1;
  threads_.clear();
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Shared* make_shared_page() {
  void* page =
      ::mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK_OR_DIE(page != MAP_FAILED);
  return new (page) Shared;
}

void await(const std::function<bool()>& condition, const char* what) {
  const std::int64_t end_us = monotonic_us() + generous_ms * 1'000;
  while (!condition()) {
    INVARIANT(monotonic_us() < end_us, "waited in vain for: {}", what);
    ::sched_yield();
  }
}

StreamPair make_stream() {
  UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ::setsockopt(listener.get(), IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  CHECK_OR_DIE(::bind(listener.get(), reinterpret_cast<sockaddr*>(&at), size) == 0);
  CHECK_OR_DIE(::listen(listener.get(), 1) == 0);
  CHECK_OR_DIE(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&at), &size) == 0);
  StreamPair pair;
  pair.source.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ::setsockopt(pair.source.get(), IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
  CHECK_OR_DIE(::connect(pair.source.get(), reinterpret_cast<sockaddr*>(&at), size) == 0);
  pair.target.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  CHECK_OR_DIE(pair.target.valid());
  const int on = 1;
  for (int fd : {pair.source.get(), pair.target.get()})
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return pair;
}

namespace {

struct Mapping {
  std::uint64_t start = 0, end = 0;
  std::string flags;
  bool operator==(const Mapping&) const = default;
};

// Mappings that the bed rebuilds: private anonymous ones.
std::vector<Mapping> mappings(pid_t pid) {
  std::vector<Mapping> out;
  std::string text = read_file(fmt::format("/proc/{}/maps", pid)).value();
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t end = text.find('\n', at);
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    Mapping m;
    char flags[8];
    unsigned long start, stop, inode;
    CHECK_OR_DIE(
        std::sscanf(line.c_str(), "%lx-%lx %7s %*x %*s %lu", &start, &stop, flags, &inode) == 4);
    if (inode != 0 || flags[3] != 'p' || line.find("[v") != std::string::npos) continue;
    m.start = start;
    m.end = stop;
    m.flags = flags;
    out.push_back(m);
  }
  return out;
}

std::vector<Mapping> merged(const std::vector<Mapping>& in) {
  std::vector<Mapping> out;
  for (const Mapping& m : in) {
    if (!out.empty() && out.back().end == m.start && out.back().flags == m.flags)
      out.back().end = m.end;
    else
      out.push_back(m);
  }
  return out;
}

}  // namespace

Bed::Bed(Child& source, Child& target, Settings settings)
    : source_(source), target_(target), settings_(settings) {
  for (int i = 0; i < settings.streams; ++i) streams_.push_back(make_stream());
  urgent_ = make_stream();
  mem_fd_ = sys::open_mem(target.pid(), true).value();
  if (settings.copy_uffd) copy_uffd_ = target.make_uffd();
  fault_uffd_ = target.make_uffd();
  source_memory_ =
      std::make_unique<SourceMemory>(SourceMemory::Options{.track = settings.track, .pause = {}});
  EXPECT_TRUE(source_memory_->add_process(space(), source.pid()).ok());
  TargetMemory::Options options;
  options.lookup = [this](SpaceId id) -> Result<SpaceTarget> {
    if (id != space()) return make_error(Errc::not_found, "space {}", id);
    SpaceTarget out;
    out.pid = target_.pid();
    out.mem_fd = mem_fd_.get();
    out.copy_uffd = copy_uffd_.valid() ? copy_uffd_.get() : -1;
    out.fault_uffd = fault_uffd_.get();
    out.areas = areas_;
    return out;
  };
  if (settings.drop)
    options.drop = [this](SpaceId, std::span<const PageRun> runs) -> Result<void> {
      for (const PageRun& run : runs)
        target_.inject(SYS_madvise, static_cast<long>(run.page * page_bytes),
                       static_cast<long>(run.pages * page_bytes), MADV_DONTNEED);
      return {};
    };
  options.huge_page_us_max = settings_.huge_page_us_max;
  target_memory_ = std::make_unique<TargetMemory>(std::move(options));
  for (StreamPair& stream : streams_)
    EXPECT_TRUE(target_memory_->add_stream(stream.target.get()).ok());
}

std::vector<int> Bed::source_streams() const {
  std::vector<int> out;
  for (const StreamPair& stream : streams_) out.push_back(stream.source.get());
  return out;
}

Tracking Bed::arm() {
  Result<Tracking> tracking = source_memory_->arm([this](pid_t) -> Result<UniqueFd> {
    const bool was_stopped = source_.stopped();
    if (!was_stopped) source_.stop();
    UniqueFd uffd = source_.make_uffd();
    if (!was_stopped) source_.go();
    return uffd;
  });
  EXPECT_TRUE(tracking.ok()) << tracking.error().what();
  return std::move(tracking).value();
}

void Bed::prepare() {
  const std::vector<Mapping> wanted = mappings(source_.pid());
  const std::vector<Mapping> have = mappings(target_.pid());
  auto has = [](const std::vector<Mapping>& in, const Mapping& m) {
    return std::find(in.begin(), in.end(), m) != in.end();
  };
  for (const Mapping& m : have)
    if (!has(wanted, m))
      target_.inject(SYS_munmap, static_cast<long>(m.start), static_cast<long>(m.end - m.start));
  // What stays keeps its pages; the rest is new, and so empty, and so in the layout.
  for (const Mapping& m : wanted) {
    const bool kept = has(have, m);
    if (!kept) {
      int protection = 0;
      if (m.flags[0] == 'r') protection |= PROT_READ;
      if (m.flags[1] == 'w') protection |= PROT_WRITE;
      if (m.flags[2] == 'x') protection |= PROT_EXEC;
      const long at = target_.inject(
          SYS_mmap, static_cast<long>(m.start), static_cast<long>(m.end - m.start), protection,
          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
      ASSERT_EQ(at, static_cast<long>(m.start));
      if (m.end - m.start >= huge_page_bytes)
        target_.inject(SYS_madvise, static_cast<long>(m.start), static_cast<long>(m.end - m.start),
                       MADV_HUGEPAGE);
    }
  }
  MapsView maps = read_areas(target_.pid()).value();
  areas_ = maps.content;
  target_memory_->forget_targets();
  if (!settings_.layouts) return;
  // Areas that were thrown away and made anew: first without, then with them.
  std::vector<Area> surviving;
  for (const Area& area : areas_) {
    const Mapping as{.start = area.start, .end = area.end, .flags = {}};
    bool survived = !area.anonymous;
    for (const Mapping& m : have)
      if (m.start <= as.start && m.end >= as.end && has(wanted, m)) survived = true;
    if (survived) surviving.push_back(area);
  }
  source_memory_->set_target_layout(space(), surviving);
  source_memory_->set_target_layout(space(), areas_);
}

RoundStats Bed::round(RoundKind kind, std::vector<RoundOptions::Range> eager) {
  const std::uint64_t number = ++round_;
  const std::vector<int> streams = source_streams();
  auto sending = std::async(std::launch::async, [&] {
    return source_memory_->send_round(
        streams, {.round = number, .kind = kind, .ack_timeout_ms = generous_ms, .eager = eager});
  });
  Result<ReceivedRound> received = target_memory_->wait_round(number, generous_ms);
  if (!received.ok())
    for (int fd : streams) ::shutdown(fd, SHUT_RDWR);
  Result<RoundStats> sent = sending.get();
  EXPECT_TRUE(received.ok()) << received.error().what();
  EXPECT_TRUE(sent.ok()) << sent.error().what();
  if (!received.ok() || !sent.ok()) return {};
  last_received = *received;
  EXPECT_EQ(received->pages, sent->pages);
  EXPECT_EQ(received->bytes, sent->bytes);
  return *sent;
}

std::uint64_t Bed::compare() {
  std::uint64_t compared = 0;
  int reported = 0;
  const std::vector<Mapping> ours = merged(mappings(source_.pid()));
  EXPECT_TRUE(ours == merged(mappings(target_.pid()))) << "the bed's mappings are wrong";
  PageSet pages;
  for (pid_t pid : {source_.pid(), target_.pid()}) {
    MapsView maps = read_areas(pid).value();
    Harvest harvest;
    EXPECT_TRUE(scan_content(pid, maps, 0, true, harvest).ok());
    pages.add(harvest.content);
  }
  UniqueFd mems[2] = {sys::open_mem(source_.pid(), false).value(),
                      sys::open_mem(target_.pid(), false).value()};
  std::vector<std::byte> left(256 * page_bytes), right(256 * page_bytes);
  for (PageRun run = pages.next_run(0, 256); run.pages != 0; run = pages.next_run(run.end(), 256)) {
    const std::size_t bytes = run.pages * page_bytes;
    Result<void> a = sys::mem_read(mems[0].get(), run.page * page_bytes, {left.data(), bytes});
    Result<void> b = sys::mem_read(mems[1].get(), run.page * page_bytes, {right.data(), bytes});
    EXPECT_TRUE(a.ok() && b.ok()) << fmt::format("unreadable at {:#x}", run.page * page_bytes);
    for (std::uint64_t i = 0; i < run.pages; ++i) {
      ++compared;
      if (std::memcmp(&left[i * page_bytes], &right[i * page_bytes], page_bytes) == 0) continue;
      if (++reported <= 5)
        ADD_FAILURE() << fmt::format("page {:#x} differs", (run.page + i) * page_bytes);
    }
  }
  EXPECT_EQ(reported, 0) << "pages differ";
  return compared;
}

void Bed::start_postcopy(bool go) {
  Result<void> started = target_memory_->start_pager(urgent_.target.get());
  ASSERT_TRUE(started.ok()) << started.error().what();
  const std::uint64_t number = ++round_;
  auto serving = std::make_shared<std::future<Result<DrainStats>>>(
      std::async(std::launch::async, [this, number] {
        return source_memory_->serve(urgent_.source.get(), source_streams(), number);
      }));
  finish_serving_ = [serving] { return serving->get(); };
  if (!go) return;
  target_.set_registers(source_.registers());
  target_.go();
}

PagerStats Bed::drain() {
  Result<PagerStats> drained = target_memory_->wait_drained(round_, generous_ms);
  EXPECT_TRUE(drained.ok()) << drained.error().what();
  if (!drained.ok()) {
    for (int fd : source_streams()) ::shutdown(fd, SHUT_RDWR);
    ::shutdown(urgent_.source.get(), SHUT_RDWR);
  }
  Result<DrainStats> served = finish_serving_();
  EXPECT_TRUE(served.ok()) << served.error().what();
  if (served.ok()) drain_stats = *served;
  return drained.ok() ? *drained : PagerStats{};
}

}  // namespace godwit::memory::testing
