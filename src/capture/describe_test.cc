#include "capture/describe.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <thread>

#include "base/clock.h"
#include "capture/describe_inside.h"
#include "capture/restart.h"
#include "capture/test_tree.h"

namespace godwit::capture {
namespace {

#define SKIP_WITHOUT_TREES() \
  if (std::string why = why_no_trees(); !why.empty()) GTEST_SKIP() << why

void nap_ms(long ms) {
  timespec t{ms / 1000, ms % 1000 * 1'000'000};
  ::nanosleep(&t, nullptr);
}

const image::OpenFile* file_of(const image::Capsule& capsule, int fd) {
  for (const image::Fd& f : capsule.processes(0).fds())
    if (f.fd() == fd)
      for (const image::OpenFile& file : capsule.files())
        if (file.id() == f.file()) return &file;
  return nullptr;
}

const image::Vma* vma_at(const image::Capsule& capsule, std::uint64_t address) {
  for (const image::Vma& vma : capsule.processes(0).mm().vmas())
    if (vma.start() <= address && address < vma.end()) return &vma;
  return nullptr;
}

const image::PrivateFile* private_file(const image::Capsule& capsule, std::uint32_t id) {
  for (const image::PrivateFile& file : capsule.private_files())
    if (file.id() == id) return &file;
  return nullptr;
}

// Freezes, describes, thaws.
Result<image::Capsule> describe(const TreeRef& ref) {
  FrozenTree tree = TRY(freeze(ref, {.measure_sleeps = true}));
  image::Capsule capsule;
  TRY(tree.describe(capsule));
  TRY(tree.thaw());
  return capsule;
}

#define ASSERT_DESCRIBED(capsule) ASSERT_TRUE(capsule.ok()) << capsule.error().what()

TEST(Describe, HandlersTimersNamesAndSignals) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start_function([](TestTree::Ready ready) {
    struct sigaction action = {};
    action.sa_flags = SA_RESTART;
    action.sa_handler = [](int) {};
    sigaddset(&action.sa_mask, SIGHUP);
    ::sigaction(SIGUSR1, &action, nullptr);
    itimerval interval{{5, 0}, {1000, 0}};
    ::setitimer(ITIMER_REAL, &interval, nullptr);
    sigevent event = {};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR1;
    event.sigev_value.sival_int = 77;
    timer_t timer;
    ::timer_create(CLOCK_MONOTONIC, &event, &timer);
    itimerspec spec{{0, 0}, {500, 0}};
    ::timer_settime(timer, 0, &spec, nullptr);
    ::umask(027);
    ::prctl(PR_SET_NAME, "it's (odd)");
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    ::prctl(PR_SET_DUMPABLE, 0);
    ::prctl(PR_SET_TIMERSLACK, 123456);
    static char stack[16384];
    stack_t alternate = {};
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    ::sigaltstack(&alternate, nullptr);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    sigval value;
    value.sival_int = 4711;
    ::sigqueue(::getpid(), SIGUSR2, value);
    ready();
    while (true) ::pause();
  });
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  Result<image::Capsule> capsule = describe(tree->ref());
  ASSERT_DESCRIBED(capsule);
  const image::Process& p = capsule->processes(0);
  const image::SigAction* usr1 = nullptr;
  for (const image::SigAction& a : p.sigactions())
    if (a.signal() == SIGUSR1) usr1 = &a;
  ASSERT_NE(usr1, nullptr);
  EXPECT_EQ(usr1->mask(), 1u << (SIGHUP - 1));
  EXPECT_TRUE(usr1->flags() & SA_RESTART);
  ASSERT_EQ(p.itimers_size(), 1);
  EXPECT_EQ(p.itimers(0).interval_us(), 5'000'000);
  EXPECT_GT(p.itimers(0).value_us(), 900'000'000);
  ASSERT_EQ(p.posix_timers_size(), 1);
  EXPECT_EQ(p.posix_timers(0).clock(), CLOCK_MONOTONIC);
  EXPECT_EQ(p.posix_timers(0).value() & 0xffffffff, 77u);
  EXPECT_EQ(p.posix_timers(0).notify(), SIGEV_SIGNAL);
  EXPECT_GT(p.posix_timers(0).value_ns(), 400'000'000'000);
  EXPECT_EQ(p.umask(), 027u);
  EXPECT_EQ(p.dumpable(), 0u);
  ASSERT_EQ(p.pending_size(), 1);
  siginfo_t info;
  std::memcpy(&info, p.pending(0).data(), sizeof info);
  EXPECT_EQ(info.si_signo, SIGUSR2);
  EXPECT_EQ(info.si_value.sival_int, 4711);
  const image::Thread& t = p.threads(0);
  EXPECT_EQ(t.comm(), "it's (odd)");
  EXPECT_EQ(t.pdeath_signal(), SIGTERM);
  EXPECT_EQ(t.timerslack_ns(), 123456u);
  EXPECT_EQ(t.altstack_size(), 16384u);
  EXPECT_EQ(t.signal_mask(), 1u << (SIGUSR2 - 1));
  EXPECT_GE(t.xstate().size(), 576u);
  EXPECT_NE(t.rseq_addr(), 0u);
  EXPECT_EQ(t.creds().cap_bounding() != 0, true);
  sys::Regs regs;
  ASSERT_EQ(t.regs().size(), sizeof regs);
  std::memcpy(&regs, t.regs().data(), sizeof regs);
  EXPECT_EQ(static_cast<std::int64_t>(regs.orig_rax), SYS_pause);
  EXPECT_EQ(static_cast<std::int64_t>(regs.rax), sys::err_restartnohand);
  EXPECT_EQ(p.rlimits_size(), 16);
}

struct FilesShared {
  std::uint64_t dontfork, shared_anon, guard, file_private;
};

TEST(Describe, FilesAndMappings) {
  SKIP_WITHOUT_TREES();
  std::string directory = "/tmp/godwit-describe-XXXXXX";
  ASSERT_NE(::mkdtemp(directory.data()), nullptr);
  auto* seen = static_cast<FilesShared*>(
      ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  Result<TestTree> tree = TestTree::start_function([&](TestTree::Ready ready) {
    const std::string named = directory + "/named", gone = directory + "/gone";
    int a = ::open(named.c_str(), O_RDWR | O_CREAT | O_APPEND, 0640);
    ::dup2(a, 100);
    ::dup3(a, 101, O_CLOEXEC);
    (void)!::write(a, "hello", 5);
    int again = ::open(named.c_str(), O_RDONLY);
    ::dup2(again, 102);
    int unlinked = ::open(gone.c_str(), O_RDWR | O_CREAT, 0600);
    ::unlink(gone.c_str());
    ::dup2(unlinked, 103);
    int memory = ::memfd_create("a memfd", MFD_ALLOW_SEALING);
    (void)!::ftruncate(memory, 8192);
    ::fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK);
    ::dup2(memory, 104);
    ::dup2(::open("/dev/null", O_WRONLY), 105);
    ::dup2(::open(directory.c_str(), O_RDONLY | O_DIRECTORY), 106);
    ::dup2(::open(named.c_str(), O_PATH), 107);
    auto map = [](std::size_t bytes, int prot, int flags, int fd) {
      return reinterpret_cast<std::uint64_t>(::mmap(nullptr, bytes, prot, flags, fd, 0));
    };
    seen->dontfork = map(8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    ::madvise(reinterpret_cast<void*>(seen->dontfork), 8192, MADV_DONTFORK);
    seen->shared_anon = map(12288, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    seen->guard = map(4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    seen->file_private = map(4096, PROT_READ, MAP_PRIVATE, a);
    ready();
    while (true) ::pause();
  });
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  Result<image::Capsule> capsule = describe(tree->ref());
  Result<LiveDescription> live = describe_live(tree->ref());
  std::string removed = "rm -rf " + directory;
  ASSERT_EQ(std::system(removed.c_str()), 0);
  ASSERT_DESCRIBED(capsule);
  ASSERT_TRUE(live.ok()) << live.error().what();

  const image::OpenFile* a = file_of(*capsule, 100);
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a, file_of(*capsule, 101)) << "dup shares the description";
  EXPECT_NE(a, file_of(*capsule, 102)) << "a second open doesn't";
  EXPECT_EQ(a->kind(), image::OpenFile::REGULAR);
  EXPECT_EQ(a->ref().path(), directory + "/named");
  EXPECT_EQ(a->ref().where(), image::FileRef::SHARED);
  EXPECT_TRUE(a->flags() & O_APPEND);
  EXPECT_EQ(a->pos(), 5);
  const image::OpenFile* gone = file_of(*capsule, 103);
  ASSERT_NE(gone, nullptr);
  ASSERT_EQ(gone->ref().where(), image::FileRef::PRIVATE);
  const image::PrivateFile* gone_file = private_file(*capsule, gone->ref().private_file());
  ASSERT_NE(gone_file, nullptr);
  EXPECT_EQ(gone_file->kind(), image::PrivateFile::UNLINKED);
  EXPECT_EQ(live->private_file_places.count(gone_file->id()), 1u)
      << "ids are the same in every description";
  const image::OpenFile* memory = file_of(*capsule, 104);
  ASSERT_NE(memory, nullptr);
  const image::PrivateFile* memory_file = private_file(*capsule, memory->ref().private_file());
  ASSERT_NE(memory_file, nullptr);
  EXPECT_EQ(memory_file->kind(), image::PrivateFile::MEMFD);
  EXPECT_EQ(memory_file->path(), "a memfd");
  EXPECT_EQ(memory_file->seals(), static_cast<unsigned>(F_SEAL_SHRINK));
  EXPECT_EQ(memory_file->size(), 8192u);
  EXPECT_EQ(file_of(*capsule, 105)->kind(), image::OpenFile::DEVICE);
  EXPECT_EQ(file_of(*capsule, 106)->kind(), image::OpenFile::DIRECTORY);
  EXPECT_EQ(file_of(*capsule, 107)->kind(), image::OpenFile::O_PATH_FD);

  const image::Vma* dontfork = vma_at(*capsule, seen->dontfork);
  ASSERT_NE(dontfork, nullptr);
  EXPECT_TRUE(dontfork->flags() & image::VMA_DONTFORK);
  const image::Vma* shared = vma_at(*capsule, seen->shared_anon);
  ASSERT_NE(shared, nullptr);
  EXPECT_EQ(shared->kind(), image::Vma::SHARED_ANON);
  ASSERT_NE(private_file(*capsule, shared->shmem()), nullptr);
  EXPECT_EQ(private_file(*capsule, shared->shmem())->size(), 12288u);
  EXPECT_EQ(vma_at(*capsule, seen->guard)->prot(), 0u);
  const image::Vma* mapped = vma_at(*capsule, seen->file_private);
  ASSERT_NE(mapped, nullptr);
  EXPECT_EQ(mapped->kind(), image::Vma::FILE);
  EXPECT_EQ(capsule->processes(0).mm().mapped(static_cast<int>(mapped->file()) - 1).path(),
            directory + "/named");
  EXPECT_NE(capsule->processes(0).mm().exe_file(), 0u);
  // The arena of our own questions is not the program's.
  EXPECT_EQ(capsule->processes(0).mm().vmas_size(), live->capsule.processes(0).mm().vmas_size());
  ::munmap(seen, 4096);
}

constexpr std::int64_t long_ns = 100'000'000'000;

struct Sleepers {
  std::atomic<std::int64_t> began_ns[8];
  std::atomic<int> tids[8];
};

void sleep_in(Sleepers* s, int which) {
  timespec t{long_ns / 1'000'000'000, 0}, left;
  int word = 1;
  int e = ::epoll_create1(0);
  epoll_event event;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  s->tids[which] = static_cast<int>(::syscall(SYS_gettid));
  s->began_ns[which] = monotonic_ns();
  switch (which) {
    case 0:
      ::syscall(SYS_nanosleep, &t, nullptr);
      break;
    case 1:
      ::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, &left);
      break;
    case 2:
      ::poll(nullptr, 0, long_ns / 1'000'000);
      break;
    case 3:
      ::epoll_wait(e, &event, 1, long_ns / 1'000'000);
      break;
    case 4:
      ::syscall(SYS_futex, &word, FUTEX_WAIT, 1, &t, nullptr, 0);
      break;
    case 5:
      ::sigtimedwait(&set, nullptr, &t);
      break;
    case 6:
      ::syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &t, nullptr);
      break;
    default:
      break;
  }
}

// A look at any instant finds them armed, also one between the moment when a timer is due and its
// interrupt.
TEST(Describe, PeriodicTimersAreArmedWheneverTheyAreLookedAt) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start_function([](TestTree::Ready ready) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    itimerval alarm{{0, 100}, {0, 100}};
    ::setitimer(ITIMER_REAL, &alarm, nullptr);
    itimerspec often{{0, 20'000}, {0, 20'000}};
    for (int i = 0; i < 8; ++i)
      ::timerfd_settime(::timerfd_create(CLOCK_MONOTONIC, 0), 0, &often, nullptr);
    ready();
    int signal;
    while (true) ::sigwait(&set, &signal);
  });
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  for (int look = 0; look < 100; ++look) {
    Result<image::Capsule> capsule = describe(tree->ref());
    ASSERT_DESCRIBED(capsule);
    const image::Process& p = capsule->processes(0);
    ASSERT_EQ(p.itimers_size(), 1) << "look " << look;
    EXPECT_EQ(p.itimers(0).interval_us(), 100);
    bool alarm_waits = false;
    for (const std::string& pending : p.pending()) {
      siginfo_t info;
      ASSERT_EQ(pending.size(), sizeof info);
      std::memcpy(&info, pending.data(), sizeof info);
      alarm_waits |= info.si_signo == SIGALRM;
    }
    EXPECT_TRUE(alarm_waits || p.itimers(0).value_us() != 0) << "look " << look;
    int timers = 0;
    for (const image::OpenFile& file : capsule->files()) {
      if (file.kind() != image::OpenFile::TIMERFD) continue;
      ++timers;
      EXPECT_NE(file.timerfd().value_ns(), 0) << "look " << look;
    }
    EXPECT_EQ(timers, 8);
  }
}

// The signal of a timer can be taken in the middle of a look, which starts the timer again.
TEST(Describe, PeriodicTimersWhoseSignalIsTakenMeanwhileAreArmed) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start_function([](TestTree::Ready ready) {
    ::signal(SIGALRM, [](int) {});
    itimerval alarm{{0, 200}, {0, 200}};
    ::setitimer(ITIMER_REAL, &alarm, nullptr);
    ready();
    while (true) ::pause();
  });
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  for (int look = 0; look < 300; ++look) {
    Result<image::Capsule> capsule = describe(tree->ref());
    ASSERT_DESCRIBED(capsule);
    const image::Process& p = capsule->processes(0);
    ASSERT_EQ(p.itimers_size(), 1) << "look " << look;
    EXPECT_TRUE(!p.pending().empty() || p.itimers(0).value_us() != 0) << "look " << look;
  }
}

constexpr int sleepers_count = 7;

// Three freezes of threads that sleep; `measured`: for how many it was known since when.
void freeze_sleepers(int& measured) {
  constexpr int count = sleepers_count;
  constexpr std::int64_t calls[count] = {
      SYS_nanosleep, SYS_clock_nanosleep, SYS_poll,           SYS_epoll_wait,
      SYS_futex,     SYS_rt_sigtimedwait, SYS_clock_nanosleep};
  auto* s = static_cast<Sleepers*>(
      ::mmap(nullptr, sizeof(Sleepers), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  Result<TestTree> tree = TestTree::start_function([&](TestTree::Ready ready) {
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) threads.emplace_back(sleep_in, s, i);
    ready();
    for (std::thread& thread : threads) thread.join();
  });
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  for (int i = 0; i < count; ++i)
    while (s->began_ns[i] == 0) nap_ms(1);
  measured = 0;
  for (int round = 0; round < 3; ++round) {
    nap_ms(300);
    Result<FrozenTree> frozen = freeze(tree->ref(), {.measure_sleeps = true});
    ASSERT_TRUE(frozen.ok()) << frozen.error().what();
    const std::int64_t frozen_at = frozen->frozen_at_ns();
    // Not describe(): epoll instances are refused there.
    FrozenProcess& process = frozen->processes().front();
    Result<sys::RemoteProcess*> remote = frozen->remote(process);
    ASSERT_TRUE(remote.ok()) << remote.error().what();
    std::vector<image::Thread> threads;
    for (const FrozenThread& stopped : process.threads) {
      image::Thread& thread = threads.emplace_back();
      thread.set_tid(stopped.tid_inside);
      Result<sys::Regs> regs = describe_restart(process, stopped, **remote, frozen_at, thread);
      ASSERT_TRUE(regs.ok()) << regs.error().what();
    }
    ASSERT_TRUE(frozen->thaw().ok());
    for (const image::Thread& thread : threads) {
      for (int i = 0; i < count; ++i) {
        if (thread.tid() != s->tids[i]) continue;
        ASSERT_NE(thread.restart().timeout(), image::Restart::NONE)
            << "sleeper " << i << " round " << round;
        EXPECT_EQ(thread.restart().nr(), calls[i]) << "sleeper " << i << " round " << round;
        const std::int64_t true_left = long_ns - (frozen_at - s->began_ns[i]);
        EXPECT_GE(thread.restart().remaining_ns(), true_left) << "sleeper " << i << ": early";
        EXPECT_LE(thread.restart().remaining_ns(), long_ns);
        measured += round == 0 && thread.restart().remaining_ns() < long_ns - 200'000'000;
        if (i == 1) {
          EXPECT_LT(thread.restart().remaining_ns(), true_left + 100'000'000)
              << "the kernel itself told";
        }
      }
    }
  }
  ::munmap(s, sizeof(Sleepers));
}

// A thread that got the processor for another reason meanwhile keeps its whole timeout: rare, but
// on a machine that is busy with other things.
TEST(Describe, InterruptedCallsCarryTheTimeThatIsLeft) {
  SKIP_WITHOUT_TREES();
  constexpr int tries_max = 20;
  int measured = 0;
  for (int tries = 0; tries < tries_max && measured < sleepers_count - 2; ++tries) {
    freeze_sleepers(measured);
    if (HasFatalFailure()) return;
  }
  EXPECT_GE(measured, sleepers_count - 2);
}

TEST(Describe, SeccompFilterThatKillsDoesNot) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start_function([](TestTree::Ready ready) {
    // Kills for everything but what follows.
    sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_nanosleep, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    sock_fprog program{std::size(code), code};
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    ready();
    timespec t{0, 1'000'000};
    while (true) ::clock_nanosleep(CLOCK_MONOTONIC, 0, &t, nullptr);
  });
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  for (int i = 0; i < 10; ++i) {
    Result<image::Capsule> capsule = describe(tree->ref());
    ASSERT_DESCRIBED(capsule);
    const image::Thread& thread = capsule->processes(0).threads(0);
    EXPECT_EQ(thread.seccomp_mode(), 2u);
    ASSERT_EQ(thread.seccomp_filters_size(), 1);
    EXPECT_EQ(thread.seccomp_filters(0).instructions().size(), 7 * sizeof(sock_filter));
    EXPECT_TRUE(thread.creds().no_new_privs());
    ASSERT_EQ(tree->complaint(), "");
  }
}

// Listed, then gone: in /proc, at pidfd_getfd, at kcmp.
TEST(Describe, DescriptorsThatComeAndGoDoNotEndALiveDescription) {
  SKIP_WITHOUT_TREES();
  constexpr int looks = 500;
  auto tree = TestTree::start_function([](const TestTree::Ready& ready) {
    ready();
    for (;;) {
      const int file = ::open("/etc/passwd", O_RDONLY | O_CLOEXEC);
      const int kept = ::fcntl(file, F_DUPFD, 10);
      int ends[2];
      if (::pipe(ends) != 0) _exit(1);
      for (int fd : {file, kept, ends[0], ends[1]}) ::close(fd);
    }
  });
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  for (int look = 0; look < looks; ++look) {
    Result<LiveDescription> live = describe_live(tree->ref());
    ASSERT_TRUE(live.ok()) << "look " << look << ": " << live.error().what();
  }
}

TEST(Describe, LeavesTheProgramAsItWas) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start(10);
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  std::vector<std::int64_t> us;
  for (int i = 0; i < 20; ++i) {
    Result<FrozenTree> frozen = freeze(tree->ref(), {.measure_sleeps = true});
    ASSERT_TRUE(frozen.ok()) << frozen.error().what();
    Result<UniqueFd> uffd = make_userfaultfd(*frozen, frozen->processes().front());
    ASSERT_TRUE(uffd.ok()) << uffd.error().what();
    const std::int64_t start = monotonic_us();
    // Only the part that injects: this program has sockets and epoll instances.
    FrozenProcess& process = frozen->processes().front();
    image::Process out;
    for (std::size_t k = 0; k < process.threads.size(); ++k) out.add_threads();
    Result<void> described = describe_inside(*frozen, process, out);
    us.push_back(monotonic_us() - start);
    ASSERT_TRUE(described.ok()) << described.error().what();
    ASSERT_EQ(out.threads_size(), 29);
    ASSERT_TRUE(frozen->thaw().ok());
    ASSERT_EQ(tree->complaint(), "");
  }
  Result<void> alive = tree->await_beats();
  EXPECT_TRUE(alive.ok()) << alive.error().what();
  std::sort(us.begin(), us.end());
  std::printf("asking 29 threads: %ld us (median)\n", static_cast<long>(us[us.size() / 2]));
}

TEST(Preflight, FindsNothingAgainstAnOrdinaryProgram) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start_function([](TestTree::Ready ready) {
    ready();
    while (true) ::pause();
  });
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  Result<std::vector<std::string>> reasons = preflight(tree->ref());
  ASSERT_TRUE(reasons.ok()) << reasons.error().what();
  EXPECT_TRUE(reasons->empty()) << (*reasons)[0];
}

TEST(Preflight, ThreadsOnTheirWayOutAreNoReason) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start_function([](TestTree::Ready ready) {
    ready();
    while (true) {
      std::vector<std::thread> threads;
      for (int i = 0; i < 32; ++i) threads.emplace_back([] {});
      for (std::thread& thread : threads) thread.join();
    }
  });
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  for (int i = 0; i < 300; ++i) {
    Result<std::vector<std::string>> reasons = preflight(tree->ref());
    ASSERT_TRUE(reasons.ok()) << reasons.error().what();
    ASSERT_TRUE(reasons->empty()) << (*reasons)[0];
  }
}

TEST(Preflight, AProtectionKeyWithoutAMappingIsAReasonAndExecuteOnlyMemoryIsNone) {
  SKIP_WITHOUT_TREES();
  const int key = ::pkey_alloc(0, 0);
  if (key < 0) GTEST_SKIP() << "no protection keys here: errno " << errno;
  ASSERT_EQ(::pkey_free(key), 0);
  for (const bool with_key : {false, true}) {
    Result<TestTree> tree = TestTree::start_function([=](TestTree::Ready ready) {
      ::mmap(nullptr, 4096, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (with_key && ::pkey_alloc(0, 0) < 0) ::_exit(1);
      ready();
      while (true) ::pause();
    });
    ASSERT_TRUE(tree.ok()) << tree.error().what();
    Result<std::vector<std::string>> outside = preflight(tree->ref());
    ASSERT_TRUE(outside.ok()) << outside.error().what();
    EXPECT_TRUE(outside->empty()) << (*outside)[0];
    std::vector<sys::InterruptedSleep> sleeps;
    Result<std::vector<std::string>> inside = preflight_inside(tree->ref(), sleeps, nullptr);
    ASSERT_TRUE(inside.ok()) << inside.error().what();
    EXPECT_EQ(inside->size(), with_key ? 1u : 0u);
    if (!inside->empty()) {
      EXPECT_NE((*inside)[0].find("has 1 protection key (pkey_alloc)"), std::string::npos)
          << (*inside)[0];
    }
  }
}

TEST(Preflight, NamesEveryReason) {
  SKIP_WITHOUT_TREES();
  Result<TestTree> tree = TestTree::start_function([](TestTree::Ready ready) {
    ::dup2(::inotify_init1(0), 50);
    int memory = ::memfd_create("locked", 0);
    ::dup2(memory, 54);
    ::flock(54, LOCK_EX);
    // A child with the same descriptors (not copies of them), as threads have.
    if (::syscall(SYS_clone, CLONE_FILES | SIGCHLD, nullptr, nullptr, nullptr, nullptr) == 0) {
      while (true) ::pause();
    }
    ready();
    while (true) ::pause();
  });
  ASSERT_TRUE(tree.ok()) << tree.error().what();
  Result<std::vector<std::string>> reasons = preflight(tree->ref());
  ASSERT_TRUE(reasons.ok()) << reasons.error().what();
  for (const char* part :
       {"descriptor 50", "an inotify instance", "holds a lock", "share descriptors"}) {
    EXPECT_TRUE(std::any_of(reasons->begin(), reasons->end(), [&](const std::string& reason) {
      return reason.find(part) != std::string::npos;
    })) << part;
  }
  // A process that came late may share with one that was looked at before.
  Result<std::vector<std::string>> of_one = preflight(tree->ref(), std::set<pid_t>{tree->pid()});
  ASSERT_TRUE(of_one.ok()) << of_one.error().what();
  EXPECT_TRUE(std::any_of(of_one->begin(), of_one->end(), [](const std::string& reason) {
    return reason.find("share descriptors") != std::string::npos;
  }));
  EXPECT_EQ(tree->complaint(), "");
}

}  // namespace
}  // namespace godwit::capture
