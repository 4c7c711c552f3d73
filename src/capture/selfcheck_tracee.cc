// A program that verifies itself: every thread repeats one thing that a careless freeze breaks, and
// adds one to its counter in the shared file argv[1] each time. What is wrong is written there,
// then abort. argv[2]: how many threads that merely sleep are added.
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <thread>
#include <vector>

#include "capture/selfcheck_tracee.h"

namespace {

SelfCheck* shared;

[[noreturn]] void wrong(const char* what, long a, long b) {
  std::snprintf(shared->error, sizeof shared->error, "%s: %ld, %ld, errno %d", what, a, b, errno);
  std::abort();
}

std::int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000L + t.tv_nsec;
}

struct Expiry {  // Checks that a timeout isn't early.
  explicit Expiry(std::int64_t ns, const char* what) : ns_(ns), what_(what) {}
  ~Expiry() {
    if (std::int64_t took = now_ns() - start_; took < ns_) wrong(what_, took, ns_);
  }
  std::int64_t start_ = now_ns(), ns_;
  const char* what_;
};

// 200,000 rounds with known values in all registers, then all are looked at. rsp and rbp are the
// compiler's; everything else, the flags and some vector registers are checked.
struct RegisterImage {
  std::uint64_t out[13];
  std::uint64_t flags_before, flags_after;
  alignas(16) unsigned char in_x[4][16], out_x[4][16];
};
extern "C" void check_registers(RegisterImage*);
asm(R"(
  .text
  .globl check_registers
check_registers:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  push %rdi
  movups 128(%rdi), %xmm0
  movups 144(%rdi), %xmm5
  movups 160(%rdi), %xmm10
  movups 176(%rdi), %xmm15
  stc
  std
  pushfq
  pop 104(%rdi)
  mov $0x11, %rax
  mov $0x22, %rbx
  mov $0x33, %rdx
  mov $0x44, %rsi
  mov $0x55, %rdi
  mov $0x66, %rbp
  mov $0x77, %r8
  mov $0x88, %r9
  mov $0x99, %r10
  mov $0xaa, %r12
  mov $0xbb, %r13
  mov $0xcc, %r14
  mov $0xdd, %r15
  mov $200000, %rcx
1: lea -1(%rcx), %rcx
  jrcxz 2f
  jmp 1b
2: mov (%rsp), %r11
  mov %rax, 0(%r11)
  mov %rbx, 8(%r11)
  mov %rdx, 16(%r11)
  mov %rsi, 24(%r11)
  mov %rdi, 32(%r11)
  mov %rbp, 40(%r11)
  mov %r8, 48(%r11)
  mov %r9, 56(%r11)
  mov %r10, 64(%r11)
  mov %r12, 72(%r11)
  mov %r13, 80(%r11)
  mov %r14, 88(%r11)
  mov %r15, 96(%r11)
  pushfq
  pop 112(%r11)
  cld
  movups %xmm0, 192(%r11)
  movups %xmm5, 208(%r11)
  movups %xmm10, 224(%r11)
  movups %xmm15, 240(%r11)
  pop %rdi
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
)");
static_assert(offsetof(RegisterImage, in_x) == 128 && offsetof(RegisterImage, out_x) == 192);

void registers() {
  static thread_local RegisterImage image;
  for (int i = 0; i < 4; ++i) std::memset(image.in_x[i], 16 * i + 1, 16);
  check_registers(&image);
  for (std::uint64_t i = 0; i < 13; ++i)
    if (image.out[i] != 0x11 * (i + 1))
      wrong("register", static_cast<long>(i), static_cast<long>(image.out[i]));
  if (image.flags_before != image.flags_after)
    wrong("flags", static_cast<long>(image.flags_before), static_cast<long>(image.flags_after));
  if (std::memcmp(image.in_x, image.out_x, sizeof image.in_x) != 0) wrong("vector registers", 0, 0);
}

void expect_mask(bool usr1, bool hup, const char* what) {
  sigset_t mask;
  pthread_sigmask(0, nullptr, &mask);
  if (sigismember(&mask, SIGUSR1) != usr1 || sigismember(&mask, SIGHUP) != hup) wrong(what, 0, 0);
}

void sleeps_nanosleep() {
  Expiry expiry(3'000'000, "nanosleep early");
  timespec t{0, 3'000'000};
  if (long r = syscall(SYS_nanosleep, &t, nullptr)) wrong("nanosleep", r, 0);
}
void sleeps_clock_nanosleep() {
  Expiry expiry(2'000'000, "clock_nanosleep early");
  timespec t{0, 2'000'000}, left;
  if (long r = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, &left))
    wrong("clock_nanosleep", r, 0);
}
void polls() {
  static int p[2], made = pipe(p);
  pollfd f{p[0], POLLIN, 0};
  Expiry expiry(5'000'000, "poll early");
  if (int r = poll(&f, 1, 5)) wrong("poll", r, made);
}
void epolls() {
  static int e = epoll_create1(0);
  epoll_event event;
  Expiry expiry(7'000'000, "epoll_wait early");
  if (int r = epoll_wait(e, &event, 1, 7)) wrong("epoll_wait", r, 0);
}
void epolls_masked() {
  static int e = epoll_create1(0);
  epoll_event event;
  sigset_t none;
  sigemptyset(&none);
  {
    Expiry expiry(7'000'000, "epoll_pwait early");
    if (int r = epoll_pwait(e, &event, 1, 7, &none)) wrong("epoll_pwait", r, 0);
  }
  expect_mask(true, false, "mask after epoll_pwait");
}
void futexes() {
  int word = 1;
  timespec t{0, 4'000'000};
  Expiry expiry(4'000'000, "futex early");
  long r = syscall(SYS_futex, &word, FUTEX_WAIT, 1, &t, nullptr, 0);
  if (r != -1 || errno != ETIMEDOUT) wrong("futex", r, 0);
}
int chain[2];
void reads() {
  static int expected;
  int got = -1;
  ssize_t r = read(chain[0], &got, sizeof got);
  if (r != sizeof got || got != expected++) wrong("read", r, got);
}
void writes() {
  static int next;
  if (write(chain[1], &next, sizeof next) != sizeof next) wrong("write", next, 0);
  ++next;
  timespec t{0, 1'500'000};
  if (nanosleep(&t, nullptr) != 0) wrong("nanosleep of the writer", 0, 0);
}
void waits_for_signal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  timespec t{0, 6'000'000};
  Expiry expiry(6'000'000, "sigtimedwait early");
  int r = sigtimedwait(&set, nullptr, &t);
  if (r != -1 || errno != EAGAIN) wrong("sigtimedwait", r, 0);
}
int semaphore = -1;
void waits_for_semaphore() {
  sembuf down{0, -1, 0};
  timespec t{0, 5'000'000};
  Expiry expiry(5'000'000, "semtimedop early");
  int r = semtimedop(semaphore, &down, 1, &t);
  if (r != -1 || errno != EAGAIN) wrong("semtimedop", r, 0);
}
void receives() {
  static int s[2], made = socketpair(AF_UNIX, SOCK_STREAM, 0, s);
  static timeval t{0, 8000};
  static int set = setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
  char byte;
  Expiry expiry(4'000'000, "recv early");  // The kernel counts this one in jiffies.
  ssize_t r = recv(s[0], &byte, 1, 0);
  if (r != -1 || errno != EAGAIN) wrong("recv", r, made + set);
}
void selects() {
  timespec t{0, 3'000'000};
  sigset_t none;
  sigemptyset(&none);
  {
    Expiry expiry(3'000'000, "pselect early");
    if (int r = pselect(0, nullptr, nullptr, nullptr, &t, &none)) wrong("pselect", r, 0);
  }
  expect_mask(true, false, "mask after pselect");
}
std::atomic<int> suspended_tid, woken;
void suspends() {
  suspended_tid = static_cast<int>(syscall(SYS_gettid));
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  int r = sigsuspend(&mask);
  if (r != -1 || errno != EINTR) wrong("sigsuspend", r, 0);
  ++woken;
}
void wakes() {
  if (suspended_tid == 0) return;
  int before = woken;
  timespec t{0, 300'000};
  nanosleep(&t, nullptr);
  syscall(SYS_tgkill, getpid(), suspended_tid.load(), SIGUSR2);
  for (std::int64_t start = now_ns(); woken == before && !shared->stop; nanosleep(&t, nullptr))
    if (now_ns() - start > 20'000'000'000) wrong("a wake-up was lost", before, 0);
}
void calls() {
  void* p = mmap(nullptr, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) wrong("mmap", 0, 0);
  std::memset(p, 1, 65536);
  if (munmap(p, 65536) != 0 || syscall(SYS_getppid) < 0) wrong("munmap", 0, 0);
}
void blocks_every_signal() {
  sigset_t set;
  sigfillset(&set);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  registers();
  expect_mask(true, true, "mask of all");
  sigpending(&set);
  if (sigismember(&set, SIGURG) || sigismember(&set, SIGWINCH)) wrong("a marker is pending", 0, 0);
}
// A handler runs 5,000 times a second in this thread: some of the signals meet the injection of a
// call.
thread_local volatile std::sig_atomic_t alarms;
void takes_signals() {
  static thread_local bool armed = false;
  if (!armed) {
    armed = true;
    struct sigaction action = {};
    action.sa_handler = [](int) { alarms = alarms + 1; };
    sigaction(SIGRTMIN, &action, nullptr);
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGRTMIN;
    event._sigev_un._tid = static_cast<int>(syscall(SYS_gettid));
    timer_t timer;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0) wrong("timer_create", 0, 0);
    itimerspec spec{{0, 200'000}, {0, 200'000}};
    timer_settime(timer, 0, &spec, nullptr);
  }
  const int before = alarms;
  registers();
  // A system call whose answer is known, interrupted or not.
  for (int i = 0; i < 1000; ++i)
    if (syscall(SYS_getpid) != getpid()) wrong("getpid", 0, 0);
  const std::int64_t start = now_ns();
  while (alarms == before)
    if (now_ns() - start > 20'000'000'000) wrong("signals of a timer stopped", before, 0);
}
void sleeps_long() {
  timespec t{0, 20'000'000};
  if (nanosleep(&t, nullptr) != 0) wrong("a sleeper's nanosleep", 0, 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  int fd = open(argv[1], O_RDWR);
  shared = static_cast<SelfCheck*>(
      mmap(nullptr, sizeof(SelfCheck), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  if (shared == MAP_FAILED) return 2;
  close(fd);
  // The set lives in an IPC namespace of our own: nothing is left behind, however we end.
  if (unshare(CLONE_NEWIPC) == 0) semaphore = semget(IPC_PRIVATE, 1, 0600);
  const int sleepers = std::atoi(argv[2]);
  const bool only_sleepers = argc > 3;
  if (!only_sleepers && pipe(chain) != 0) return 2;

  struct sigaction action = {};
  action.sa_handler = [](int) {};
  sigaction(SIGUSR2, &action, nullptr);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);

  std::vector<void (*)()> jobs;
  if (!only_sleepers)
    jobs = {registers,
            sleeps_nanosleep,
            sleeps_clock_nanosleep,
            polls,
            epolls,
            epolls_masked,
            futexes,
            reads,
            writes,
            waits_for_signal,
            waits_for_semaphore,
            receives,
            selects,
            suspends,
            wakes,
            calls,
            blocks_every_signal,
            takes_signals};
  jobs.insert(jobs.end(), static_cast<std::size_t>(sleepers), sleeps_long);
  if (jobs.size() > SelfCheck::jobs_max) return 2;
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < jobs.size(); ++i)
    threads.emplace_back([i, job = jobs[i]] {
      while (!shared->stop) {
        job();
        ++shared->beats[i];
      }
    });
  shared->jobs = static_cast<int>(jobs.size());
  for (std::thread& thread : threads) thread.join();
  return 0;
}
