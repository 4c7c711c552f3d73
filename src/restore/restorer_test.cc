// Real processes, moved from one shell to another on this machine. A program ends with 0 if all is
// well, else it says on stderr what isn't.
#include "restore/restorer.h"

#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/clock.h"
#include "base/io.h"
#include "restore/moved_program.h"

namespace godwit::restore {
namespace {

class RestorerTest : public testing::Test {
 protected:
  void SetUp() override {
    static const std::string why = why_no_shells();
    if (!why.empty()) GTEST_SKIP() << why;
  }
};

void print_times(const char* what, const Moved& m) {
  printf("%s: prepare %ld us, finish %ld us, seal %ld us, start %ld us\n", what,
         static_cast<long>(m.prepare_us), static_cast<long>(m.finish_us),
         static_cast<long>(m.seal_us), static_cast<long>(m.start_us));
}

#define MOVE(moved, ...)                                             \
  auto moved##_result = move_program(__VA_ARGS__);                   \
  ASSERT_TRUE(moved##_result.ok()) << moved##_result.error().what(); \
  Moved& moved = *moved##_result

#define MOVE_AND_FINISH(...)                   \
  MOVE(m, __VA_ARGS__);                        \
  ASSERT_TRUE(m.target->write_byte('g').ok()); \
  finishes_well(m)

std::string slurp(const char* path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The lines of /proc/self/status that speak of identity and privilege.
std::string privileges() {
  std::istringstream in(slurp("/proc/thread-self/status"));
  std::string line, out;
  while (std::getline(in, line)) {
    for (const char* name :
         {"Name",   "Umask",  "Tgid",   "Pid",    "PPid",   "Uid",        "Gid",
          "Groups", "NStgid", "NSpgid", "NSsid",  "Cap",    "NoNewPrivs", "Seccomp",
          "SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd", "Threads"}) {
      if (line.starts_with(name)) out += line + "\n";
    }
  }
  return out;
}

TEST_F(RestorerTest, AReadGoesOnInTheOtherShell) {
  MOVE_AND_FINISH([] {
    be_moved();
    CHECK_HERE(getpid() == program_pid);
    return 0;
  });
  print_times("1 thread", m);
}

// After the grant nobody may end the only copy, whatever fails: who takes over thaws it.
TEST_F(RestorerTest, AStartThatFailsLeavesTheProgramToWhoeverThaws) {
  const Start failing = [](Moved& moved) -> Result<void> {
    moved.target->fail_next_thaw();
    EXPECT_FALSE(moved.restorer->start().ok());
    moved.restorer.reset();
    return moved.target->thaw_tree();
  };
  MOVE_AND_FINISH(
      [] {
        be_moved();
        return 0;
      },
      {}, failing);
}

TEST_F(RestorerTest, ThreadsKeepMemoryLocksTlsIdsAndVectorRegisters) {
  MOVE_AND_FINISH([] {
    static thread_local std::uint64_t mine;
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
    static std::atomic<bool> stop{false};
    static long counter = 0;
    std::vector<std::uint64_t> data(1 << 20);
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = i * 0x9e3779b97f4a7c15;
    std::vector<std::thread> threads;
    for (int n = 0; n < 8; ++n) {
      threads.emplace_back([n] {
        mine = 0xabc000 + static_cast<std::uint64_t>(n);
        auto tid = gettid();
        prctl(PR_SET_NAME, ("w" + std::to_string(n)).c_str());
        std::int64_t last = monotonic_ns();
        while (!stop) {
          double lanes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
          for (int i = 0; i < 2000; ++i) {
            for (double& x : lanes) x += 1;
          }
          for (int i = 0; i < 8; ++i) CHECK_HERE(lanes[i] == 2001 + i);
          CHECK_HERE(mine == 0xabc000 + static_cast<std::uint64_t>(n) && gettid() == tid);
          std::int64_t now = monotonic_ns();
          CHECK_HERE(now >= last);
          last = now;
          pthread_mutex_lock(&mutex);
          ++counter;
          pthread_cond_broadcast(&changed);
          pthread_mutex_unlock(&mutex);
        }
        char name[16] = {};
        prctl(PR_GET_NAME, name);
        CHECK_HERE("w" + std::to_string(n) == name);
      });
    }
    be_moved();
    pthread_mutex_lock(&mutex);
    for (long from = counter; counter < from + 1000;) pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    stop = true;
    for (auto& t : threads) t.join();
    for (std::size_t i = 0; i < data.size(); ++i) CHECK_HERE(data[i] == i * 0x9e3779b97f4a7c15);
    std::thread([] {}).join();  // New threads can be made.
    return 0;
  });
}

TEST_F(RestorerTest, ClocksGoOnWithoutAJump) {
  MOVE_AND_FINISH([] {
    struct Sample {
      std::int64_t mono, boot, real;
    };
    // Read without being interrupted for long, on a machine as busy as it likes.
    auto sample = [] {
      for (;;) {
        Sample s{monotonic_ns(), boottime_ns(), realtime_ns()};
        if (monotonic_ns() - s.mono < 200'000) return s;
      }
    };
    Sample before = sample();
    CHECK_HERE(before.mono > 7'200'000'000'000);
    be_moved();
    Sample after = sample();
    std::int64_t passed = after.real - before.real;
    std::int64_t mono_passed = after.mono - before.mono, boot_passed = after.boot - before.boot;
    CHECK_HERE(mono_passed > 0 && boot_passed > 0);
    CHECK_HERE(std::abs(mono_passed - passed) < 20'000'000 &&
               std::abs(boot_passed - passed) < 20'000'000);
    // The vdso reads the same as the system call.
    timespec by_call{};
    std::int64_t first = monotonic_ns();
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &by_call);
    std::int64_t call_ns = by_call.tv_sec * 1'000'000'000 + by_call.tv_nsec;
    CHECK_HERE(first <= call_ns && call_ns <= monotonic_ns());
    return 0;
  });
}

// Lets the image say how much of the interrupted call is left.
ChangeImage remaining(std::int64_t ns, image::Restart::Timeout kind, unsigned arg) {
  return [=](image::Capsule& c) {
    for (image::Thread& t : *c.mutable_processes(0)->mutable_threads()) {
      if (!t.has_restart()) continue;
      t.mutable_restart()->set_timeout(kind);
      t.mutable_restart()->set_timeout_arg(arg);
      t.mutable_restart()->set_remaining_ns(ns);
    }
  };
}

// Sleeps are a second long; the stop comes within it, and at least 600 ms are left by then on any
// machine that runs this test at all. The program checks that it slept at least what was said.
constexpr std::int64_t left_ns = 600'000'000;

int checked_sleep(const std::function<int()>& sleep) {
  char byte = 'r';
  CHECK_HERE(write(1, &byte, 1) == 1);
  std::int64_t from = realtime_ns();
  errno = 0;
  CHECK_HERE(sleep() == 0);
  CHECK_HERE(realtime_ns() - from >= left_ns);
  return 0;
}

TEST_F(RestorerTest, NanosleepGoesOnWithTheTimeLeft) {
  MOVE(
      m,
      [] {
        return checked_sleep([] {
          timespec second{1, 0};
          return static_cast<int>(syscall(SYS_nanosleep, &second, nullptr));
        });
      },
      remaining(left_ns, image::Restart::TIMESPEC, 0));
  finishes_well(m);
}

TEST_F(RestorerTest, ClockNanosleepGoesOnWithTheTimeLeft) {
  MOVE(
      m,
      [] {
        return checked_sleep([] {
          timespec second{1, 0};
          return clock_nanosleep(CLOCK_MONOTONIC, 0, &second, nullptr);
        });
      },
      remaining(left_ns, image::Restart::TIMESPEC, 2));
  finishes_well(m);
}

TEST_F(RestorerTest, PollGoesOnWithTheTimeLeft) {
  MOVE(
      m,
      [] {
        return checked_sleep([] {
          pollfd in{0, POLLIN, 0};
          return static_cast<int>(syscall(SYS_poll, &in, 1, 1000));
        });
      },
      remaining(left_ns, image::Restart::MILLISECONDS, 2));
  finishes_well(m);
}

TEST_F(RestorerTest, PollSeesWhatArrivesAfterTheMove) {
  MOVE(
      m,
      [] {
        char byte = 'r';
        CHECK_HERE(write(1, &byte, 1) == 1);
        pollfd in{0, POLLIN, 0};
        CHECK_HERE(syscall(SYS_poll, &in, 1, 20'000) == 1 && in.revents == POLLIN);
        return 0;
      },
      remaining(20'000'000'000, image::Restart::MILLISECONDS, 2));
  ASSERT_TRUE(m.target->write_byte('x').ok());
  finishes_well(m);
}

TEST_F(RestorerTest, FutexWaitGoesOnWithTheTimeLeft) {
  MOVE(
      m,
      [] {
        return checked_sleep([] {
          static std::uint32_t word = 0;
          timespec second{1, 0};
          long r = syscall(SYS_futex, &word, 0 /* FUTEX_WAIT */, 0, &second, nullptr, 0);
          return r == -1 && errno == ETIMEDOUT ? 0 : 1;
        });
      },
      remaining(left_ns, image::Restart::TIMESPEC, 3));
  finishes_well(m);
}

// Calls without a restart_block: as capture describes them.
ChangeImage restart_of(long nr, image::Restart::Timeout kind, unsigned arg, std::int64_t ns) {
  return [=](image::Capsule& c) {
    image::Thread& t = *c.mutable_processes(0)->mutable_threads(0);
    user_regs_struct regs;
    std::memcpy(&regs, t.regs().data(), sizeof regs);
    image::Restart& r = *t.mutable_restart();
    r.Clear();
    r.set_nr(nr), r.set_timeout(kind), r.set_timeout_arg(arg), r.set_remaining_ns(ns);
    for (std::uint64_t a : {regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9})
      r.add_args(a);
  };
}

TEST_F(RestorerTest, SigtimedwaitGoesOnWithTheTimeLeftAndWithoutATraceInTheProgramsMemory) {
  MOVE(
      m,
      [] {
        return checked_sleep([] {
          sigset_t set;
          sigemptyset(&set), sigaddset(&set, SIGUSR1);
          static timespec second{1, 0};
          long r = syscall(SYS_rt_sigtimedwait, &set, nullptr, &second, 8);
          CHECK_HERE(second.tv_sec == 1 && second.tv_nsec == 0);
          return r == -1 && errno == EAGAIN ? 0 : 1;
        });
      },
      restart_of(SYS_rt_sigtimedwait, image::Restart::TIMESPEC, 2, left_ns));
  finishes_well(m);
}

TEST_F(RestorerTest, PpollGoesOnWithTheTimeLeft) {
  MOVE(
      m,
      [] {
        return checked_sleep([] {
          timespec second{1, 0};
          return static_cast<int>(syscall(SYS_ppoll, nullptr, 0, &second, nullptr, 8));
        });
      },
      restart_of(SYS_ppoll, image::Restart::TIMESPEC, 2, left_ns));
  finishes_well(m);
}

TEST_F(RestorerTest, HandlersMasksAndPendingSignalsComeAlong) {
  MOVE_AND_FINISH([] {
    static std::atomic<int> value{0}, hits{0};
    struct sigaction action {};
    action.sa_sigaction = [](int, siginfo_t* info, void*) {
      value = info->si_value.sival_int, ++hits;
    };
    action.sa_flags = SA_SIGINFO;
    sigaddset(&action.sa_mask, SIGHUP);
    sigaction(SIGRTMIN + 3, &action, nullptr);
    signal(SIGTRAP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGRTMIN + 3), sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    sigval payload;
    for (payload.sival_int = 41; payload.sival_int <= 42; ++payload.sival_int) {
      CHECK_HERE(sigqueue(getpid(), SIGRTMIN + 3, payload) == 0);
    }
    CHECK_HERE(pthread_kill(pthread_self(), SIGUSR2) == 0);
    std::string before = privileges();
    be_moved();
    CHECK_HERE(before == privileges());
    struct sigaction now {};
    sigaction(SIGRTMIN + 3, nullptr, &now);
    CHECK_HERE(now.sa_sigaction == action.sa_sigaction && sigismember(&now.sa_mask, SIGHUP) == 1);
    siginfo_t info{};
    sigset_t usr2;
    sigemptyset(&usr2), sigaddset(&usr2, SIGUSR2);
    // The C library's sigwaitinfo would show SI_USER.
    CHECK_HERE(syscall(SYS_rt_sigtimedwait, &usr2, &info, nullptr, 8) == SIGUSR2);
    CHECK_HERE(info.si_code == SI_TKILL);
    CHECK_HERE(info.si_pid == getpid());
    sigdelset(&set, SIGUSR2);
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    CHECK_HERE(hits == 2 && value == 42);
    return 0;
  });
}

TEST_F(RestorerTest, TimersGoOnWithTheirIds) {
  auto change = [](image::Capsule& c) {
    for (auto [id, value] : {std::pair{2, 300'000'000}, std::pair{5, 0}}) {
      image::PosixTimer& t = *c.mutable_processes(0)->add_posix_timers();
      t.set_id(id), t.set_clock(CLOCK_MONOTONIC), t.set_notify(SIGEV_SIGNAL), t.set_signal(SIGUSR1);
      t.set_value(77), t.set_value_ns(value);
    }
  };
  MOVE(
      m,
      [] {
        static std::atomic<int> alarms{0}, value{0};
        signal(SIGALRM, [](int) { ++alarms; });
        struct sigaction action {};
        action.sa_sigaction = [](int, siginfo_t* info, void*) { value = info->si_value.sival_int; };
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGUSR1, &action, nullptr);
        itimerval every{{0, 50'000}, {0, 400'000}};
        setitimer(ITIMER_REAL, &every, nullptr);
        be_moved();
        while (alarms < 3 || value != 77) pause();
        itimerspec spec{};
        CHECK_HERE(syscall(SYS_timer_gettime, 2, &spec) == 0);
        CHECK_HERE(syscall(SYS_timer_gettime, 5, &spec) == 0 && spec.it_value.tv_nsec == 0);
        CHECK_HERE(syscall(SYS_timer_gettime, 3, &spec) == -1 && errno == EINVAL);
        return 0;
      },
      change);
  ASSERT_TRUE(m.target->write_byte('g').ok());
  finishes_well(m);
}

TEST_F(RestorerTest, CredentialsCapabilitiesAndLimitsAreWhatTheyWere) {
  MOVE_AND_FINISH([] {
    gid_t groups[] = {100, 200, 300};
    CHECK_HERE(setgroups(3, groups) == 0);
    rlimit files{100, 200};
    CHECK_HERE(setrlimit(RLIMIT_NOFILE, &files) == 0);
    umask(027);
    CHECK_HERE(setresgid(1000, 1001, 1002) == 0 && setresuid(1000, 1001, 1002) == 0);
    CHECK_HERE(prctl(PR_SET_DUMPABLE, 1) == 0);
    prctl(PR_SET_NAME, "renamed");
    std::string before = privileges(), limits = slurp("/proc/self/limits");
    be_moved();
    CHECK_HERE(before == privileges());
    CHECK_HERE(limits == slurp("/proc/self/limits"));
    CHECK_HERE(prctl(PR_GET_DUMPABLE) == 1);
    CHECK_HERE(kill(1, SIGTERM) == -1 && errno == EPERM);
    return 0;
  });
}

TEST_F(RestorerTest, RootWithoutSomeCapabilitiesStaysSo) {
  MOVE_AND_FINISH([] {
    CHECK_HERE(prctl(PR_CAPBSET_DROP, 12 /* CAP_NET_ADMIN */) == 0);
    CHECK_HERE(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    std::string before = privileges();
    be_moved();
    CHECK_HERE(before == privileges());
    return 0;
  });
}

TEST_F(RestorerTest, ASeccompFilterIsBackAndKills) {
  MOVE(m, [] {
    // getppid kills, everything else passes.
    sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
                          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
                          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
                          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    sock_fprog program{4, code};
    static std::atomic<bool> go{false};
    std::thread other([] {
      while (!go) usleep(100);
    });
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    CHECK_HERE(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) ==
               0);
    std::string before = privileges();
    be_moved();
    CHECK_HERE(before == privileges());
    // Threads share the filter as before: synchronizing another one works.
    CHECK_HERE(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) ==
               0);
    go = true;
    other.join();
    getppid();
    return 2;
  });
  ASSERT_TRUE(m.target->write_byte('g').ok());
  auto status = m.target->wait_child(program_pid);
  ASSERT_TRUE(status.ok()) << status.error().what();
  EXPECT_TRUE(WIFSIGNALED(*status) && WTERMSIG(*status) == SIGSYS) << std::hex << *status;
}

TEST_F(RestorerTest, DescriptorsKeepNumbersFlagsOffsetsAndSharing) {
  MOVE_AND_FINISH([] {
    int a = open("/etc/passwd", O_RDONLY), n = open("/dev/null", O_WRONLY | O_NONBLOCK),
        d = open("/etc", O_RDONLY | O_DIRECTORY);
    CHECK_HERE(lseek(a, 17, SEEK_SET) == 17);
    CHECK_HERE(dup2(a, 9) == 9 && dup2(n, 40) == 40 && dup2(d, 5) >= 0 &&
               dup3(a, 70, O_CLOEXEC) == 70);
    CHECK_HERE(close(n) == 0);
    be_moved();
    CHECK_HERE(lseek(9, 0, SEEK_CUR) == 17 && lseek(9, 30, SEEK_SET) == 30 &&
               lseek(a, 0, SEEK_CUR) == 30);
    CHECK_HERE(fcntl(70, F_GETFD) == FD_CLOEXEC && fcntl(9, F_GETFD) == 0 &&
               lseek(70, 0, SEEK_CUR) == 30);
    CHECK_HERE((fcntl(40, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_WRONLY | O_NONBLOCK));
    CHECK_HERE(write(40, "x", 1) == 1);
    struct stat st {};
    CHECK_HERE(fstat(5, &st) == 0 && S_ISDIR(st.st_mode));
    int count = 0;
    for (int fd = 0; fd < 1000; ++fd) count += fcntl(fd, F_GETFD) >= 0;
    CHECK_HERE(count == 3 + 2 + 1 + 3 + (d == 5 ? 0 : 1) - 1);
    return 0;
  });
}

TEST_F(RestorerTest, PrivateFilesAndSharedMemoryTravel) {
  MOVE_AND_FINISH([] {
    int mem = static_cast<int>(memfd_create("mine", MFD_ALLOW_SEALING | MFD_CLOEXEC));
    CHECK_HERE(ftruncate(mem, 10'000) == 0 && pwrite(mem, "hello", 5, 4095) == 5);
    auto* view = static_cast<char*>(mmap(nullptr, 10'000, PROT_READ, MAP_SHARED, mem, 0));
    CHECK_HERE(fcntl(mem, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    int gone = open("/tmp/gone", O_RDWR | O_CREAT | O_APPEND, 0640);
    CHECK_HERE(unlink("/tmp/gone") == 0 && write(gone, "unlinked", 8) == 8);
    auto* shared = static_cast<char*>(
        mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    auto* again =
        static_cast<char*>(mremap(shared, 0, 1 << 20, MREMAP_MAYMOVE));  // The same object twice.
    shared[4096] = 42;
    auto* secret = static_cast<char*>(
        mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    std::strcpy(secret, "secret");
    mprotect(secret, 8192, PROT_NONE);
    be_moved();
    char text[8] = {};
    CHECK_HERE(std::memcmp(view + 4095, "hello", 5) == 0);
    CHECK_HERE(pwrite(mem, "H", 1, 4095) == 1 && view[4095] == 'H');
    CHECK_HERE(fcntl(mem, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW) && ftruncate(mem, 1) == -1);
    CHECK_HERE(pread(gone, text, 8, 0) == 8 && std::memcmp(text, "unlinked", 8) == 0);
    struct stat st {};
    CHECK_HERE(fstat(gone, &st) == 0 && st.st_nlink == 0 && (st.st_mode & 0777) == 0640 &&
               st.st_size == 8);
    CHECK_HERE((fcntl(gone, F_GETFL) & O_APPEND) != 0);
    CHECK_HERE(shared[4096] == 42 && again[4096] == 42);
    shared[0] = 7;
    CHECK_HERE(again[0] == 7);
    CHECK_HERE(mprotect(secret, 8192, PROT_READ) == 0 && std::strcmp(secret, "secret") == 0);
    return 0;
  });
}

TEST_F(RestorerTest, MappingsKeepTheirFlagsAndNothingOfOursIsLeft) {
  // Taken without allocating, or the heap would differ.
  static char raw[2][1 << 17];
  static const auto take = [](char* to) {
    int fd = open("/proc/self/smaps", O_RDONLY);
    std::size_t size = 0;
    std::memset(to, 0, sizeof raw[0]);
    for (ssize_t n = 1; n > 0; size += static_cast<std::size_t>(n))
      n = read(fd, to + size, sizeof raw[0] - 1 - size);
    close(fd);
  };
  // Without what a move may change: sizes in memory, and where the kernel merged neighbours.
  struct Mapping {
    std::uint64_t start, end;
    std::string what;
  };
  static const auto mappings = [](const char* text) {
    std::istringstream in(text);
    std::string line;
    std::vector<Mapping> list;
    Mapping next{};
    while (std::getline(in, line)) {
      char permissions[5];
      unsigned long start = 0, end = 0;
      if (sscanf(line.c_str(), "%lx-%lx %4s", &start, &end, permissions) == 3) {
        next.start = start, next.end = end;
        next.what = permissions + line.substr(std::min(line.size(), std::size_t{72}));
      } else if (line.starts_with("VmFlags")) {
        // "ac" says that an area was writable once, "sd" depends on the kernel.
        for (const char* flag : {" ac", " sd"}) {
          if (auto at = line.find(flag); at != std::string::npos) line.erase(at, 3);
        }
        next.what += line.substr(8);
        if (!list.empty() && list.back().end == next.start && list.back().what == next.what) {
          list.back().end = next.end;
        } else {
          list.push_back(next);
        }
      }
    }
    std::string out;
    for (const Mapping& m : list) out += fmt::format("{:x}-{:x} {}\n", m.start, m.end, m.what);
    return out;
  };
  MOVE_AND_FINISH([] {
    auto area = [](std::size_t bytes, int flags = 0) {
      // Guards between, so that areas don't merge.
      auto* at = static_cast<char*>(
          mmap(nullptr, bytes + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      void* p = mmap(at + 4096, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags, -1, 0);
      CHECK_HERE(p != MAP_FAILED);
      return static_cast<char*>(p);
    };
    CHECK_HERE(madvise(area(65536), 65536, MADV_DONTFORK) == 0);
    CHECK_HERE(madvise(area(65536), 65536, MADV_DONTDUMP) == 0);
    CHECK_HERE(madvise(area(4 << 20), 4 << 20, MADV_HUGEPAGE) == 0);
    CHECK_HERE(madvise(area(65536), 65536, MADV_NOHUGEPAGE) == 0);
    CHECK_HERE(madvise(area(65536), 65536, MADV_WIPEONFORK) == 0);
    CHECK_HERE(madvise(area(65536), 65536, MADV_RANDOM) == 0);
    CHECK_HERE(madvise(area(65536), 65536, MADV_SEQUENTIAL) == 0);
    CHECK_HERE(mlock(area(65536), 65536) == 0);
    CHECK_HERE(mlock2(area(65536), 65536, MLOCK_ONFAULT) == 0);
    area(1ull << 36, MAP_NORESERVE)[123] = 1;
    area(65536, MAP_GROWSDOWN)[65535] = 1;
    take(raw[1]);  // Faults its pages in.
    take(raw[0]);
    be_moved();
    take(raw[1]);
    std::string before = mappings(raw[0]), after = mappings(raw[1]);
    if (after != before) {
      std::istringstream x(before), y(after);
      std::string a, b;
      while (std::getline(x, a) && std::getline(y, b) && a == b) {
      }
      dprintf(2, "before: %s\nafter:  %s\n", a.c_str(), b.c_str());
      return 1;
    }
    return 0;
  });
}

TEST_F(RestorerTest, AnUnchangedListOfManyMappingsCostsNothingAtTheFreeze) {
  constexpr int count = 10'000;
  auto source = TestShell::create([] {
    for (int i = 0; i < count; ++i) {
      mmap(nullptr, 4096, i % 2 != 0 ? PROT_READ : PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    be_moved();
    return 0;
  });
  ASSERT_TRUE(source.ok());
  auto pid = (*source)->spawn(program_pid);
  ASSERT_TRUE(pid.ok() && (*source)->read_byte().ok());
  auto stopped = StoppedProgram::stop(*pid, program_pid);
  ASSERT_TRUE(stopped.ok());
  auto image = stopped->describe();
  ASSERT_TRUE(image.ok()) << image.error().what();
  auto target = TestShell::create();
  ASSERT_TRUE(target.ok());
  auto restorer = Restorer::create(**target);
  ASSERT_TRUE(restorer.ok());
  std::int64_t start = monotonic_us();
  auto prepared = restorer->prepare(*image);
  std::int64_t made = monotonic_us();
  ASSERT_TRUE(prepared.ok()) << prepared.error().what();
  auto finally = restorer->prepare_final(*image);
  std::int64_t again = monotonic_us();
  ASSERT_TRUE(finally.ok()) << finally.error().what();
  EXPECT_GT(image->processes(0).mm().vmas_size(), count);
  RecordProperty("prepare_us", std::to_string(made - start));
  RecordProperty("unchanged_us", std::to_string(again - made));
  printf("%d mappings: prepare %ld us, prepare_final unchanged %ld us\n", count,
         static_cast<long>(made - start), static_cast<long>(again - made));
}

// Threads, mappings, heap and protections change between the first image and the last.
int program_that_changes() {
  static std::atomic<int> stage{0}, alive{0};
  auto until = [](int n) {
    return std::thread([n] {
      ++alive;
      while (stage < n) usleep(100);
    });
  };
  auto page = [](int prot) {
    return static_cast<char*>(mmap(nullptr, 65536, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  };
  std::thread first = until(1), second = until(2);
  while (alive < 2) usleep(100);
  char* gone = page(PROT_READ | PROT_WRITE);
  char* kept = page(PROT_READ | PROT_WRITE);
  char* reprotected = page(PROT_READ | PROT_WRITE);
  std::strcpy(gone, "gone"), std::strcpy(kept, "kept"), std::strcpy(reprotected, "read-only");
  be_moved();  // Only looked at: it goes on here.
  stage = 1;
  first.join();
  std::thread third = until(2);
  while (alive < 3) usleep(100);
  munmap(gone, 65536);
  mprotect(reprotected + 4096, 4096, PROT_NONE);
  CHECK_HERE(mmap(gone, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == gone);
  std::vector<char> heap(100'000, 'h');
  auto* grown = static_cast<char*>(sbrk(1 << 20));
  std::strcpy(grown, "heap");
  be_moved();
  CHECK_HERE(gone[0] == 0 && std::strcmp(kept, "kept") == 0 &&
             std::strcmp(reprotected, "read-only") == 0);
  CHECK_HERE(std::strcmp(grown, "heap") == 0 && heap[99'999] == 'h' &&
             sbrk(0) == grown + (1 << 20));
  CHECK_HERE(mprotect(reprotected + 4096, 4096, PROT_READ) == 0 && reprotected[4096] == 0);
  stage = 2;
  second.join(), third.join();
  return 0;
}

TEST_F(RestorerTest, OnlyWhatChangedSinceTheFirstImageIsDoneAgain) {
  auto source = TestShell::create(program_that_changes), target = TestShell::create();
  ASSERT_TRUE(source.ok() && target.ok());
  auto pid = (*source)->spawn(program_pid);
  ASSERT_TRUE(pid.ok() && (*source)->read_byte().ok() && wait_until_asleep(*pid).ok());
  auto restorer = Restorer::create(**target);
  ASSERT_TRUE(restorer.ok() && restorer->align_clocks(0, 0).ok());
  for (int round = 0; round < 2; ++round) {
    auto looked_at = StoppedProgram::stop(*pid, program_pid);
    ASSERT_TRUE(looked_at.ok());
    auto so_far = looked_at->describe();
    ASSERT_TRUE(so_far.ok() && looked_at->resume().ok());
    auto prepared = restorer->prepare(*so_far);
    ASSERT_TRUE(prepared.ok()) << prepared.error().what();
    // Stale pages from before the changes must not show up afterwards.
    if (round == 0) {
      for (const image::Vma& v : so_far->processes(0).mm().vmas()) {
        auto space = restorer->space(program_pid);
        ASSERT_TRUE(space.ok());
        if (v.kind() == image::Vma::ANON && v.end() - v.start() == 3 * 65536) {
          EXPECT_EQ(pwrite(space->mem_fd, "stale", 5, static_cast<off_t>(v.start())), 5);
          MemoryRange range{v.start(), v.start() + 4096};
          EXPECT_TRUE(restorer->drop_pages(program_pid, {&range, 1}, true).ok());
        }
      }
      auto uffd = restorer->make_userfaultfd(program_pid, O_CLOEXEC | O_NONBLOCK);
      ASSERT_TRUE(uffd.ok()) << uffd.error().what();
    }
  }
  ASSERT_TRUE((*source)->write_byte('g').ok() && (*source)->read_byte().ok() &&
              wait_until_asleep(*pid).ok());
  auto stopped = StoppedProgram::stop(*pid, program_pid);
  ASSERT_TRUE(stopped.ok());
  auto final = stopped->describe();
  ASSERT_TRUE(final.ok()) << final.error().what();
  for (image::Thread& t : *final->mutable_processes(0)->mutable_threads()) {
    if (!t.has_restart()) continue;
    t.mutable_restart()->set_timeout(image::Restart::TIMESPEC);
    t.mutable_restart()->set_timeout_arg(t.restart().nr() == SYS_nanosleep ? 0 : 2);
  }
  auto done = [&]() -> Result<void> {
    TRY(restorer->prepare_final(*final));
    TRY(stopped->copy_content(*final, *restorer));
    TRY(restorer->finish(*final, 0));
    TRY(restorer->seal());
    return restorer->start();
  }();
  ASSERT_TRUE(done.ok()) << done.error().what();
  ASSERT_TRUE((*target)->write_byte('g').ok());
  auto status = (*target)->wait_child(program_pid);
  ASSERT_TRUE(status.ok()) << status.error().what();
  EXPECT_EQ(*status, 0);
}

TEST_F(RestorerTest, ASkeletonDiesWithItsRestorer) {
  pid_t skeleton = 0;
  auto target = TestShell::create();
  ASSERT_TRUE(target.ok());
  {
    auto source = TestShell::create([] {
      be_moved();
      return 0;
    });
    ASSERT_TRUE(source.ok());
    auto pid = (*source)->spawn(program_pid);
    ASSERT_TRUE(pid.ok() && (*source)->read_byte().ok());
    auto stopped = StoppedProgram::stop(*pid, program_pid);
    ASSERT_TRUE(stopped.ok());
    auto image = stopped->describe();
    ASSERT_TRUE(image.ok()) << image.error().what();
    auto restorer = Restorer::create(**target);
    ASSERT_TRUE(restorer.ok());
    auto prepared = restorer->prepare(*image);
    ASSERT_TRUE(prepared.ok()) << prepared.error().what();
    skeleton = restorer->processes()[0].second;
    EXPECT_EQ(kill(skeleton, 0), 0);
  }
  auto status = (*target)->wait_child(program_pid);
  ASSERT_TRUE(status.ok()) << status.error().what();
  EXPECT_TRUE(WIFSIGNALED(*status) && WTERMSIG(*status) == SIGKILL);
}

TEST_F(RestorerTest, SixtyFourThreadsStartTogether) {
  auto moved = move_program(
      [] {
        static std::atomic<int> alive{0};
        static std::atomic<bool> stop{false};
        std::vector<std::thread> threads;
        for (int i = 0; i < 63; ++i) {
          threads.emplace_back([] {
            ++alive;
            while (!stop) usleep(1000);
          });
        }
        while (alive < 63) usleep(100);
        be_moved();
        stop = true;
        for (auto& t : threads) t.join();
        return 0;
      },
      [](image::Capsule& c) {
        for (image::Thread& t : *c.mutable_processes(0)->mutable_threads()) {
          if (!t.has_restart()) continue;
          t.mutable_restart()->set_timeout(image::Restart::TIMESPEC);
          t.mutable_restart()->set_timeout_arg(t.restart().nr() == SYS_nanosleep ? 0 : 2);
          t.mutable_restart()->set_remaining_ns(500'000);
        }
      });
  ASSERT_TRUE(moved.ok()) << moved.error().what();
  ASSERT_TRUE(moved->target->write_byte('g').ok());
  finishes_well(*moved);
  print_times("64 threads", *moved);
}

TEST_F(RestorerTest, WhatItCannotDoIsRefusedByName) {
  auto target = TestShell::create();
  ASSERT_TRUE(target.ok());
  auto restorer = Restorer::create(**target);
  ASSERT_TRUE(restorer.ok());
  image::Capsule c;
  c.set_version(2);
  image::Process& p = *c.add_processes();
  p.set_pid(50);
  p.add_threads()->set_tid(50);
  p.set_exit_signal(SIGUSR1);
  image::Vma& v = *p.mutable_mm()->add_vmas();
  v.set_start(0x1000), v.set_end(0x2000), v.set_pkey(3), v.set_flags(image::VMA_SEALED);
  p.GetReflection()->MutableUnknownFields(&p)->AddVarint(1000, 1);
  auto refused = restorer->prepare(c);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::unsupported);
  for (const char* reason :
       {"image version 2", "exit signal 10", "protection key", "mseal", "field 1000"}) {
    EXPECT_NE(refused.error().what().find(reason), std::string::npos)
        << reason << " in " << refused.error().what();
  }
}

}  // namespace
}  // namespace godwit::restore
