// What moving memory costs on this machine, part by part and as a whole, beside a raw two-stream
// TCP copy of as many bytes into prefaulted memory in the same run. Source and target are forked
// children that only hold memory; sizes are MiB. See bench/README.md.
#include <arpa/inet.h>
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <future>
#include <random>
#include <thread>

#include "base/ids.h"
#include "memory/dirty_tracker.h"
#include "memory/source_memory.h"
#include "memory/target_memory.h"
#include "memory/zero_page.h"
#include "sys/memory_io.h"

namespace godwit::memory {
namespace {

constexpr std::uint64_t arena = 0x200000000000;
constexpr std::uint64_t mib = 1 << 20;

// A child with memory at `arena`; gives a userfaultfd of its own through a socketpair.
class Holder {
 public:
  Holder(std::uint64_t bytes, bool huge, bool filled) : bytes_(bytes) {
    int ends[2];
    INVARIANT(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    pid_ = ::fork();
    INVARIANT(pid_ >= 0);
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      serve(ends[1], huge, filled);
    }
    ::close(ends[1]);
    control_.reset(ends[0]);
    (void)ask(0);
  }
  ~Holder() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }
  std::vector<Area> areas() const {
    return {
        {.start = arena, .end = arena + bytes_, .anonymous = true, .file = {}, .file_delta = 0}};
  }
  // Writes one word in this many pages of a thousand.
  void dirty(int per_mille) { (void)ask(per_mille + 2); }
  UniqueFd uffd() {
    const int number = ask(1);
    UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), number, 0)));
    INVARIANT(fd.valid(), "errno={}", errno);
    return fd;
  }

 private:
  int ask(int what) {
    int answer = -1;
    INVARIANT(::write(control_.get(), &what, sizeof what) == sizeof what);
    INVARIANT(::read(control_.get(), &answer, sizeof answer) == sizeof answer);
    return answer;
  }

  [[noreturn]] void serve(int control, bool huge, bool filled) {
    auto* memory =
        static_cast<char*>(::mmap(reinterpret_cast<void*>(arena), bytes_, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0));
    ::madvise(memory, bytes_, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    std::mt19937_64 random(1);
    if (filled)
      for (std::uint64_t at = 0; at < bytes_; at += 8)
        *reinterpret_cast<std::uint64_t*>(memory + at) = at * 0x9e3779b97f4a7c15ull + 1;
    int what;
    int uffd = -1;
    while (::read(control, &what, sizeof what) == sizeof what) {
      int answer = 0;
      if (what == 1) {
        if (uffd >= 0) ::close(uffd);
        answer = uffd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
      }
      if (what >= 2)
        for (std::uint64_t n = bytes_ / page_bytes * static_cast<std::uint64_t>(what - 2) / 1000;
             n > 0; --n)
          memory[random() % (bytes_ / page_bytes) * page_bytes] ^= 1;
      if (::write(control, &answer, sizeof answer) != sizeof answer) break;
    }
    ::_exit(0);
  }

  std::uint64_t bytes_;
  pid_t pid_;
  UniqueFd control_;
};

struct Stream {
  UniqueFd source, target;
};

Stream make_stream() {
  UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  ::setsockopt(listener.get(), IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
  INVARIANT(::bind(listener.get(), reinterpret_cast<sockaddr*>(&at), size) == 0);
  INVARIANT(::listen(listener.get(), 1) == 0);
  INVARIANT(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&at), &size) == 0);
  Stream out;
  out.source.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ::setsockopt(out.source.get(), IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
  INVARIANT(::connect(out.source.get(), reinterpret_cast<sockaddr*>(&at), size) == 0);
  out.target.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const int on = 1;
  ::setsockopt(out.source.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return out;
}

void raw_copy(benchmark::State& state) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(state.range(0)) * mib;
  std::vector<char> from(bytes / 2, 1), to[2];
  for (auto& part : to) part.assign(bytes / 2, 2);
  for (auto _ : state) {
    state.PauseTiming();
    Stream streams[2] = {make_stream(), make_stream()};
    state.ResumeTiming();
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([&, i] {
        for (std::uint64_t at = 0; at < from.size(); at += mib) {
          iovec piece{.iov_base = from.data() + at, .iov_len = mib};
          INVARIANT(sys::send_vector(streams[i].source.get(), std::span(&piece, 1)).ok());
        }
      });
      threads.emplace_back([&, i] {
        INVARIANT(
            sys::receive_exact(streams[i].target.get(), std::as_writable_bytes(std::span(to[i])))
                .ok());
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes) * state.iterations());
}
BENCHMARK(raw_copy)->Arg(1024)->Unit(benchmark::kMillisecond)->UseRealTime();

// range: MiB, huge on the source, 1 with copy_uffd on the target.
void send_receive(benchmark::State& state) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(state.range(0)) * mib;
  const bool huge = state.range(1) != 0;
  Holder source(bytes, huge, true);
  for (auto _ : state) {
    state.PauseTiming();
    auto target = std::make_unique<Holder>(bytes, huge, false);
    std::vector<Stream> streams;
    for (int i = 0; i < 2; ++i) streams.push_back(make_stream());
    UniqueFd mem = sys::open_mem(target->pid(), true).value();
    UniqueFd copy = state.range(2) != 0 ? target->uffd() : UniqueFd();
    auto from = std::make_unique<SourceMemory>(SourceMemory::Options{});
    INVARIANT(from->add_process(1, source.pid()).ok());
    from->set_target_layout(1, source.areas());
    auto to = std::make_unique<TargetMemory>(
        TargetMemory::Options{.lookup = [&](SpaceId) -> Result<SpaceTarget> {
                                SpaceTarget out;
                                out.pid = target->pid();
                                out.mem_fd = mem.get();
                                out.copy_uffd = copy.valid() ? copy.get() : -1;
                                out.areas = target->areas();
                                return out;
                              },
                              .drop = {}});
    std::vector<int> fds;
    for (Stream& stream : streams) {
      INVARIANT(to->add_stream(stream.target.get()).ok());
      fds.push_back(stream.source.get());
    }
    state.ResumeTiming();
    auto sending = std::async(std::launch::async, [&] {
      return from->send_round(fds, {.round = 1, .kind = RoundKind::precopy, .eager = {}});
    });
    INVARIANT(to->wait_round(1, 60'000).ok());
    Result<RoundStats> sent = sending.get();
    INVARIANT(sent.ok() && sent->pages == bytes / page_bytes, "pages");
    state.PauseTiming();
    to.reset();
    from.reset();
    target.reset();
    state.ResumeTiming();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes) * state.iterations());
}
BENCHMARK(send_receive)
    ->ArgNames({"MiB", "huge", "uffd"})
    ->Args({1024, 0, 0})
    ->Args({1024, 0, 1})
    ->Args({1024, 1, 1})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

// range: MiB, huge, pages written of a thousand between harvests; take (1) or look (0).
void harvest(benchmark::State& state) {
  Holder source(static_cast<std::uint64_t>(state.range(0)) * mib, state.range(1) != 0, true);
  auto tracker = make_uffd_tracker(source.pid(), source.uffd());
  INVARIANT(tracker.ok(), "{}", tracker.error().what());
  INVARIANT((*tracker)->harvest(HarvestMode::take).ok());
  for (auto _ : state) {
    state.PauseTiming();
    if (state.range(2) != 0) source.dirty(static_cast<int>(state.range(2)));
    state.ResumeTiming();
    Result<Harvest> out =
        (*tracker)->harvest(state.range(3) != 0 ? HarvestMode::take : HarvestMode::look);
    INVARIANT(out.ok());
    benchmark::DoNotOptimize(out->dirty.count());
  }
}
BENCHMARK(harvest)
    ->ArgNames({"MiB", "huge", "dirty", "take"})
    ->Args({1024, 0, 0, 1})
    ->Args({1024, 0, 0, 0})
    ->Args({1024, 0, 10, 1})
    ->Args({1024, 0, 100, 1})
    ->Args({1024, 1, 0, 1})
    ->Args({4096, 0, 0, 0})
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

void first_arm(benchmark::State& state) {
  Holder source(static_cast<std::uint64_t>(state.range(0)) * mib, state.range(1) != 0, true);
  for (auto _ : state) {
    state.PauseTiming();
    UniqueFd uffd = source.uffd();
    state.ResumeTiming();
    auto tracker = make_uffd_tracker(source.pid(), std::move(uffd));
    INVARIANT(tracker.ok() && (*tracker)->harvest(HarvestMode::take).ok());
    state.PauseTiming();
    tracker = Error(Errc::cancelled, "closed outside of the measurement");
    state.ResumeTiming();
  }
}
BENCHMARK(first_arm)
    ->ArgNames({"MiB", "huge"})
    ->Args({1024, 0})
    ->Args({1024, 1})
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

void zero_test(benchmark::State& state) {
  constexpr std::uint64_t bytes = 64 * mib;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(page_bytes, bytes));
  std::memset(memory, 0, bytes);
  for (auto _ : state) {
    bool all = true;
    for (std::uint64_t at = 0; at < bytes; at += page_bytes) all &= is_zero_page(memory + at);
    INVARIANT(all);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes) * state.iterations());
  std::free(memory);
}
BENCHMARK(zero_test);

}  // namespace
}  // namespace godwit::memory

BENCHMARK_MAIN();
