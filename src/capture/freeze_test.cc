#include "capture/freeze.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <csignal>
#include <functional>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "base/io.h"
#include "capture/describe.h"
#include "capture/test_tree.h"
#include "sys/pidfd.h"
#include "sys/testing/plausible_error.h"
#include "sys/vdso.h"

namespace godwit::capture {
namespace {

#define SKIP_WITHOUT_TREES() \
  if (std::string why = why_no_trees(); !why.empty()) GTEST_SKIP() << why

// What the engine does between freeze and release: a userfaultfd is made and fetched, a batch is
// run, the tree sealed.
Result<void> freeze_and_inject(const TreeRef& ref, int calls, bool every_thread) {
  FrozenTree tree = TRY(freeze(ref, {.measure_sleeps = true}));
  for (FrozenProcess& process : tree.processes()) {
    UniqueFd uffd = TRY(make_userfaultfd(tree, process));
    sys::RemoteProcess* remote = TRY(tree.remote(process));
    TRY(remote->map_arena(process.threads.front()));
    const std::size_t last = every_thread ? process.threads.size() : 1;
    for (std::size_t i = 0; i < last; ++i) {
      sys::RemoteBatch batch(*remote);
      for (int k = 0; k < calls; ++k) batch.call(SYS_gettid);
      TRY(remote->run(process.threads[i], batch));
      for (std::size_t k = 1; k <= static_cast<std::size_t>(calls); ++k)
        if (batch.result(k) != process.threads[i].tid_inside)
          return make_error(Errc::internal, "call {} of thread {}: {}", k, i, batch.result(k));
    }
  }
  TRY(tree.seal());
  return tree.thaw();
}

TEST(Freeze, ThawedTreeHasSeenNothing) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start();
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  for (int i = 0; i < 100; ++i) {
    Result<void> done = freeze_and_inject(tree->ref(), 20, i % 10 == 0);
    ASSERT_TRUE(done.ok()) << done.error().what();
    ASSERT_EQ(tree->complaint(), "");
  }
  Result<void> alive = tree->await_beats();
  EXPECT_TRUE(alive.ok()) << alive.error().what();
}

TEST(Freeze, NoThreadStaysInsideTheVdsoWhenTheTargetHasAnother) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start_function([](const TestTree::Ready& ready) {
    std::thread other([] {
      for (timespec now;;) ::clock_gettime(CLOCK_REALTIME, &now);
    });
    ready();
    for (timespec now;;) ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  });
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  Result<sys::VdsoPlace> vdso = sys::find_vdso(tree->pid());
  ASSERT_TRUE(vdso.ok());
  bool inside_otherwise = false;
  for (int i = 0; i < 20; ++i) {
    const bool leave = i % 2 == 0;
    Result<FrozenTree> frozen = freeze(tree->ref(), {.leave_vdso = leave});
    ASSERT_TRUE(frozen.ok()) << frozen.error().what();
    for (const FrozenThread& thread : frozen->processes().front().threads) {
      const bool inside = vdso->contains(thread.regs.rip);
      EXPECT_FALSE(leave && inside) << std::hex << thread.regs.rip;
      inside_otherwise = inside_otherwise || (!leave && inside);
    }
    ASSERT_TRUE(frozen->thaw().ok());
  }
  EXPECT_TRUE(inside_otherwise);  // Else nothing was proved.
}

struct Fault {
  int at = 0;         // The call, counted from 1.
  bool kill = false;  // Else it fails.
};

struct Struck {
  bool struck = false;  // It made so many calls.
  int status = 0;       // How it ended.
  std::uint64_t call = 0, request = 0;
  int error = 0;
  int calls = 0;  // How many it made, of those that count.
};

// Whether this stop of the child, at a system call, counts.
bool counts(const user_regs_struct& regs, const Fault& fault) {
  // Waiting is many calls that change nothing: how many is chance.
  if (regs.orig_rax == SYS_sched_yield || regs.orig_rax == SYS_nanosleep ||
      regs.orig_rax == SYS_clock_nanosleep)
    return false;
  return fault.kill ? regs.orig_rax != SYS_wait4 : sys::plausible_error(regs, 0) != 0;
}

// Runs `work` in a child process and strikes at its n-th system call. For a kill, entries and exits
// are counted alike (at an entry the call isn't executed any more), else entries. We trace the
// tracer.
Struck strike(const Fault& fault, const std::function<bool()>& work) {
  pid_t child = ::fork();
  if (child == 0) {
    ::raise(SIGSTOP);
    ::_exit(work() ? 0 : 1);
  }
  Struck out;
  EXPECT_EQ(::waitpid(child, &out.status, WUNTRACED), child);
  EXPECT_EQ(::ptrace(PTRACE_SEIZE, child, 0, PTRACE_O_TRACESYSGOOD), 0) << errno;
  ::kill(child, SIGCONT);
  int error = 0;
  bool entry = false;
  while (::waitpid(child, &out.status, __WALL) == child) {
    if (WIFEXITED(out.status) || WIFSIGNALED(out.status)) break;
    long signal = 0;
    if (WSTOPSIG(out.status) == (SIGTRAP | 0x80)) {
      entry = !entry;
      user_regs_struct regs{};
      ::ptrace(PTRACE_GETREGS, child, 0, &regs);
      if (!entry && error != 0) {
        regs.rax = static_cast<std::uint64_t>(-error);
        ::ptrace(PTRACE_SETREGS, child, 0, &regs);
        error = 0;
      } else if ((entry || fault.kill) && counts(regs, fault) && ++out.calls == fault.at) {
        out.struck = true;
        if (fault.kill) {
          ::kill(child, SIGKILL);
          continue;
        }
        error = sys::plausible_error(regs, static_cast<std::uint64_t>(fault.at));
        out.call = regs.orig_rax, out.request = regs.rdi, out.error = error;
        regs.orig_rax = ~0ULL;  // Not executed.
        ::ptrace(PTRACE_SETREGS, child, 0, &regs);
      }
    } else if (out.status >> 16 == 0) {
      signal = WSTOPSIG(out.status);
    }
    ::ptrace(PTRACE_SYSCALL, child, 0, signal);
  }
  return out;
}

// Every so many calls are tried: as many points as a test has time for, over the whole of `work`,
// others each time. With GODWIT_EXHAUSTIVE all of them.
int step_over(const std::function<bool()>& work, bool kill) {
  constexpr int points = 100;
  if (std::getenv("GODWIT_EXHAUSTIVE") != nullptr) return 1;
  const Struck whole = strike({.at = INT_MAX, .kill = kill}, work);
  EXPECT_EQ(whole.status, 0) << "the engine failed by itself";
  return std::max(1, whole.calls / points);
}

// Nothing of ours is left in the program, and nothing holds it.
void expect_untouched(const TestTree& tree, std::size_t descriptors) {
  EXPECT_EQ(std::move(sys::list_fds(tree.pid())).value().size(), descriptors);
  EXPECT_EQ(std::move(read_file(tree.ref().freezer_path + "/cgroup.freeze")).value(), "0\n");
  const std::vector<pid_t> threads = std::move(list_tree_threads(tree.ref())).value();
  for (pid_t tid : threads) EXPECT_EQ(std::move(sys::read_status(tid)).value().tracer, 0);
}

// A thread of it maps and unmaps all the time.
Result<void> await_mappings(const TestTree& tree, std::size_t most) {
  const std::int64_t start = monotonic_us();
  while (true) {
    const std::size_t now = std::move(sys::read_maps(tree.pid())).value().size();
    if (now <= most) return {};
    if (monotonic_us() - start > 10'000'000)
      return make_error(Errc::timeout, "{} mappings, there were {}", now, most);
  }
}

TEST(Freeze, DeathOfTheTracerAtAnyCallIsHarmless) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start();
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  ASSERT_TRUE(tree->await_beats().ok());
  const std::size_t descriptors = std::move(sys::list_fds(tree->pid())).value().size();
  const std::int64_t start = monotonic_us();
  int kills = 0;
  const auto work = [&] { return freeze_and_inject(tree->ref(), 100, false).ok(); };
  const int step = step_over(work, true);
  for (int n = 1 + ::getpid() % step, tried = 1;; n += step, ++tried) {
    const Struck end = strike({.at = n, .kill = true}, work);
    if (!end.struck) {
      EXPECT_EQ(end.status, 0) << "the engine failed by itself, n=" << n;
    }
    kills += end.struck;
    Result<void> recovered = recover(tree->ref());
    ASSERT_TRUE(recovered.ok()) << "n=" << n << ": " << recovered.error().what();
    ASSERT_EQ(tree->complaint(), "") << "n=" << n;
    if (tried % 32 == 0) {
      Result<void> alive = tree->await_beats();
      ASSERT_TRUE(alive.ok()) << "n=" << n << ": " << alive.error().what();
    }
    if (!end.struck) break;
  }
  Result<void> alive = tree->await_beats();
  EXPECT_TRUE(alive.ok()) << alive.error().what();
  EXPECT_EQ(std::move(sys::list_fds(tree->pid())).value().size(), descriptors);
  EXPECT_GT(kills, 50);
  RecordProperty("kills", kills);
  std::printf("tracer killed %d times in %ld ms\n", kills,
              static_cast<long>((monotonic_us() - start) / 1000));
}

// What the engine does with a tree that it lets go on in the end.
Result<void> freeze_and_describe(const TreeRef& ref) {
  LiveDescription live = TRY(describe_live(ref));
  FrozenTree tree = TRY(freeze(ref, {.measure_sleeps = true}));
  for (FrozenProcess& process : tree.processes()) TRY(make_userfaultfd(tree, process));
  image::Capsule capsule;
  TRY(tree.describe(capsule, &live.capsule));
  TRY(tree.seal());
  return tree.thaw();
}

// No recovery follows, unless the engine ended itself because it couldn't mend what had failed.
void fail_everywhere(TestTree* tree, const std::function<Result<void>()>& engine) {
  auto work = [&] {
    Result<void> done = engine();
    if (!done.ok()) std::printf("%s\n", done.error().what().c_str()), std::fflush(stdout);
    return done.ok();
  };
  ASSERT_TRUE(tree->await_beats().ok());
  const std::size_t descriptors = std::move(sys::list_fds(tree->pid())).value().size();
  std::size_t mappings = SIZE_MAX;
  for (int i = 0; i < 1000; ++i)
    mappings = std::min(mappings, std::move(sys::read_maps(tree->pid())).value().size());
  const std::int64_t start = monotonic_us();
  int failures = 0, reported = 0, died = 0;
  const int step = step_over(work, false);
  bool struck = true;
  for (int n = 1 + ::getpid() % step; struck; n += step) {
    const Struck end = strike({.at = n}, work);
    SCOPED_TRACE(fmt::format("call {}: {}({:#x}), error {}; status {:#x}", n, end.call, end.request,
                             end.error, end.status));
    struck = end.struck;
    failures += struck;
    if (!struck) {
      EXPECT_EQ(end.status, 0) << "the engine failed by itself";
    }
    reported += WIFEXITED(end.status) && WEXITSTATUS(end.status) != 0;
    if (WIFSIGNALED(end.status)) {
      ++died;
      Result<void> recovered = recover(tree->ref());
      ASSERT_TRUE(recovered.ok()) << recovered.error().what();
    }
    ASSERT_EQ(tree->complaint(), "");
    Result<void> unmapped = await_mappings(*tree, mappings);
    EXPECT_TRUE(unmapped.ok()) << unmapped.error().what();
    ASSERT_NO_FATAL_FAILURE(expect_untouched(*tree, descriptors));
    ASSERT_FALSE(::testing::Test::HasFailure());
    if (failures % 32 == 0) {
      Result<void> alive = tree->await_beats();
      ASSERT_TRUE(alive.ok()) << alive.error().what();
    }
  }
  Result<void> alive = tree->await_beats();
  EXPECT_TRUE(alive.ok()) << alive.error().what();
  EXPECT_GT(failures, 50);
  // Mended by the engine itself, as a rule.
  EXPECT_LT(died, failures / 10 + 3);
  std::printf("%d failed calls in %ld ms: %d reported, %d ended the engine\n", failures,
              static_cast<long>((monotonic_us() - start) / 1000), reported, died);
}

TEST(Freeze, AnyFailedCallIsHarmless) {
  SKIP_WITHOUT_TREES();
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer's allocator ends the process when its own mmap fails";
#endif
  Result<TestTree> tree = TestTree::start();
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  fail_everywhere(&*tree, [&] { return freeze_and_inject(tree->ref(), 20, true); });
}

TEST(Freeze, AnyFailedCallOfADescriptionIsHarmless) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start(3, true);
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  fail_everywhere(&*tree, [&] { return freeze_and_describe(tree->ref()); });
}

TEST(Freeze, StoppedProgramStaysStopped) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start(3, true);
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  ASSERT_EQ(::kill(tree->pid(), SIGSTOP), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(tree->pid(), &status, WUNTRACED), tree->pid());
  for (int i = 0; i < 20; ++i) {
    Result<void> done = freeze_and_inject(tree->ref(), 3, true);
    ASSERT_TRUE(done.ok()) << done.error().what();
    Result<sys::ProcStatus> seen = sys::read_status(tree->pid());
    const std::int64_t start = monotonic_us();
    // Detached threads take a moment to go back to their stop.
    while (seen.ok() && seen->state != 'T' && monotonic_us() - start < 10'000'000)
      seen = sys::read_status(tree->pid());
    ASSERT_TRUE(seen.ok());
    ASSERT_EQ(seen->state, 'T');
  }
  Result<FrozenTree> frozen = freeze(tree->ref());
  ASSERT_TRUE(frozen.ok()) << frozen.error().what();
  image::Capsule capsule;
  Result<void> described = frozen->describe(capsule);
  ASSERT_TRUE(described.ok()) << described.error().what();
  EXPECT_EQ(capsule.processes(0).stop_signal(), SIGSTOP);
  ASSERT_TRUE(frozen->thaw().ok());
  ASSERT_EQ(::kill(tree->pid(), SIGCONT), 0);
  Result<void> alive = tree->await_beats();
  EXPECT_TRUE(alive.ok()) << alive.error().what();
}

TEST(Freeze, ProgramKilledWhileFrozenIsGone) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start(3, true);
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  Result<FrozenTree> frozen = freeze(tree->ref());
  ASSERT_TRUE(frozen.ok()) << frozen.error().what();
  ASSERT_EQ(::kill(tree->pid(), SIGKILL), 0);
  image::Capsule capsule;
  Result<void> described = frozen->describe(capsule);
  ASSERT_FALSE(described.ok());
  EXPECT_EQ(described.error().code(), Errc::tracee_gone) << described.error().what();
  EXPECT_TRUE(frozen->thaw().ok());
}

TEST(Freeze, SealedTreeDoesNotRunWhenTheTracerDies) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start();
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  pid_t child = ::fork();
  if (child == 0) {
    Result<FrozenTree> frozen = freeze(tree->ref());
    const bool sealed = frozen.ok() && frozen->seal().ok();
    if (sealed) ::raise(SIGKILL);
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  // Whatever was still on its way has come to rest when the kernel says that the group is frozen.
  const std::string events = tree->ref().freezer_path + "/cgroup.events";
  const std::int64_t start = monotonic_us();
  while (std::move(read_file(events)).value().find("frozen 1") == std::string::npos)
    ASSERT_LT(monotonic_us() - start, 10'000'000);
  const std::uint64_t before = tree->beats();
  timespec while_it_could_run{0, 50'000'000};
  ::nanosleep(&while_it_could_run, nullptr);
  EXPECT_EQ(tree->beats(), before);
  Result<void> recovered = recover(tree->ref());
  ASSERT_TRUE(recovered.ok()) << recovered.error().what();
  Result<void> alive = tree->await_beats();
  EXPECT_TRUE(alive.ok()) << alive.error().what();
}

// Between system calls too, and while the tracee is in the middle of a batch.
TEST(Freeze, DeathOfTheTracerAtAnyTimeIsHarmless) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start();
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  unsigned seed = 12345;
  for (int i = 0; i < 300; ++i) {
    pid_t child = ::fork();
    if (child == 0) {
      while (freeze_and_inject(tree->ref(), 100, true).ok()) {
      }
      ::_exit(1);
    }
    seed = seed * 1103515245 + 12345;
    timespec delay{0, 100'000 + static_cast<long>(seed >> 8) % 6'000'000};
    ::nanosleep(&delay, nullptr);
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the engine failed by itself";
    Result<void> recovered = recover(tree->ref());
    ASSERT_TRUE(recovered.ok()) << recovered.error().what();
    ASSERT_EQ(tree->complaint(), "") << "kill " << i;
  }
  Result<void> alive = tree->await_beats();
  EXPECT_TRUE(alive.ok()) << alive.error().what();
}

// A program that its filter kills for every call but those that it makes itself.
class Confined {
 public:
  static Result<Confined> start() {
    Confined out;
    void* at = ::mmap(nullptr, sizeof(std::atomic<std::uint64_t>), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return os_error("mmap");
    out.turns_ = new (at) std::atomic<std::uint64_t>(0);
    out.tree_.emplace(TRY(TestTree::start_function([&](const TestTree::Ready& ready) {
      ready();
      confine();
      timespec pause{0, 100'000};
      while (true) {
        if (::syscall(SYS_nanosleep, &pause, nullptr) != 0) ::abort();
        *out.turns_ += 1;
      }
    })));
    // It is confined from its first turn on.
    const std::int64_t start = monotonic_us();
    while (*out.turns_ == 0)
      if (monotonic_us() - start > 10'000'000) return make_error(Errc::timeout, "no turn");
    return out;
  }
  TestTree& tree() { return *tree_; }
  // Whether it has gone on since.
  bool goes_on() {
    const std::uint64_t before = *turns_;
    const std::int64_t start = monotonic_us();
    while (*turns_ < before + 2)
      if (monotonic_us() - start > 10'000'000 || tree_->complaint() != "") return false;
    return true;
  }

 private:
  static void confine() {
    constexpr unsigned nr = offsetof(seccomp_data, nr);
    sock_filter instructions[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, nr),
                                  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_nanosleep, 2, 0),
                                  // By this the kernel goes on with a sleep after any stop.
                                  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 1, 0),
                                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
                                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    sock_fprog filter{std::size(instructions), instructions};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
      ::abort();
  }
  std::optional<TestTree> tree_;
  std::atomic<std::uint64_t>* turns_ = nullptr;
};

TEST(Freeze, AFilterThatKillsDoesNotSeeInjectedCalls) {
  SKIP_WITHOUT_TREES();
  Result<Confined> program = Confined::start();
  ASSERT_TRUE(program.ok()) << program.error().what();
  for (int i = 0; i < 20; ++i) {
    const std::int64_t start = monotonic_us();
    Result<void> done = freeze_and_inject(program->tree().ref(), 100, true);
    ASSERT_TRUE(done.ok()) << done.error().what();
    if (i == 19) std::printf("%ld us\n", static_cast<long>(monotonic_us() - start));
    ASSERT_TRUE(program->goes_on()) << program->tree().complaint();
  }
}

TEST(Freeze, DeathOfTheTracerAtAnyTimeIsHarmlessUnderAFilterThatKills) {
  SKIP_WITHOUT_TREES();
  Result<Confined> program = Confined::start();
  ASSERT_TRUE(program.ok()) << program.error().what();
  const std::size_t descriptors = std::move(sys::list_fds(program->tree().pid())).value().size();
  unsigned seed = static_cast<unsigned>(monotonic_us());
  SCOPED_TRACE(seed);
  const char* wanted = std::getenv("GODWIT_KILLS");
  const int kills = wanted != nullptr ? std::atoi(wanted) : 200;
  for (int i = 0; i < kills; ++i) {
    pid_t child = ::fork();
    if (child == 0) {
      while (freeze_and_inject(program->tree().ref(), 100, true).ok()) {
      }
      ::_exit(1);
    }
    seed = seed * 1103515245 + 12345;
    timespec delay{0, 100'000 + static_cast<long>(seed >> 8) % 6'000'000};
    ::nanosleep(&delay, nullptr);
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the engine failed by itself";
    Result<void> recovered = recover(program->tree().ref());
    ASSERT_TRUE(recovered.ok()) << recovered.error().what();
    ASSERT_TRUE(program->goes_on()) << "kill " << i << ": " << program->tree().complaint();
    ASSERT_NO_FATAL_FAILURE(expect_untouched(program->tree(), descriptors));
  }
}

std::int64_t describe_us(const TreeRef& ref) {
  Result<LiveDescription> live = describe_live(ref);
  EXPECT_TRUE(live.ok()) << live.error().what();
  Result<FrozenTree> frozen = freeze(ref, {.measure_sleeps = true});
  EXPECT_TRUE(frozen.ok()) << frozen.error().what();
  if (!live.ok() || !frozen.ok()) return 0;
  const std::int64_t start = monotonic_us();
  image::Capsule capsule;
  Result<void> described = frozen->describe(capsule, &live->capsule);
  EXPECT_TRUE(described.ok()) << described.error().what();
  return monotonic_us() - start;
}

TEST(Freeze, TakesMicroseconds) {
  SKIP_WITHOUT_TREES();
  for (int threads : {1, 7, 63}) {
    Result<TestTree> tree = TestTree::start(threads, true);
    ASSERT_TRUE(tree.ok()) << tree.error().what();
    std::vector<std::int64_t> stops, injects, thaws, describes;
    for (int i = 0; i < 21; ++i) {
      std::int64_t begin = 0, injected = 0, end = 0;
      {
        Result<FrozenTree> frozen = freeze(tree->ref());
        ASSERT_TRUE(frozen.ok()) << frozen.error().what();
        begin = monotonic_ns();
        stops.push_back((begin - frozen->frozen_at_ns()) / 1000);
        FrozenProcess& process = frozen->processes().front();
        EXPECT_EQ(process.threads.size(), static_cast<std::size_t>(threads) + 1);
        sys::RemoteProcess* remote = std::move(frozen->remote(process)).value();
        ASSERT_TRUE(remote->map_arena(process.threads.front()).ok());
        sys::RemoteBatch batch(*remote);
        for (int k = 0; k < 100; ++k) batch.call(SYS_getppid);
        ASSERT_TRUE(remote->run(process.threads.front(), batch).ok());
        injected = monotonic_ns();
        ASSERT_TRUE(frozen->thaw().ok());
        end = monotonic_ns();
      }
      injects.push_back((injected - begin) / 1000);
      thaws.push_back((end - injected) / 1000);
      describes.push_back(describe_us(tree->ref()));
      ASSERT_FALSE(HasFailure());
    }
    std::sort(stops.begin(), stops.end());
    std::sort(injects.begin(), injects.end());
    std::sort(thaws.begin(), thaws.end());
    std::sort(describes.begin(), describes.end());
    std::printf(
        "%2d threads: freeze %ld us, arena and 100 calls %ld us, thaw %ld us; describe %ld us "
        "(medians)\n",
        threads + 1, static_cast<long>(stops[10]), static_cast<long>(injects[10]),
        static_cast<long>(thaws[10]), static_cast<long>(describes[10]));
  }
}

}  // namespace
}  // namespace godwit::capture
