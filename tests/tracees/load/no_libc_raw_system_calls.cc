// A program without any libc: its own entry point, raw system calls, no TLS, no rseq, no vdso, one
// thread made by clone. An engine that relies on something that glibc sets up fails here. It shares
// no code with other tracees.
#include <asm/unistd.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <linux/time_types.h>

using u64 = unsigned long;

static inline long call(long nr, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0,
                        long f = 0) {
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  long result;
  asm volatile("syscall"
               : "=a"(result)
               : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

static long address(const volatile void* p) { return reinterpret_cast<long>(p); }

template <u64 size>
static void say(const char (&text)[size]) {
  call(__NR_write, 1, address(text), size - 1);
}

[[noreturn]] static void leave(int code) {
  for (;;) call(__NR_exit_group, code);
}

static volatile u64 data[64 * 1024];
static volatile u64 thread_count;
static volatile int thread_tid;
static char thread_stack[16384] __attribute__((aligned(16)));

// Runs on its own stack, sleeps and counts for ever; the kernel clears thread_tid when it ends.
[[noreturn]] static void thread_body() {
  for (;;) {
    __kernel_timespec t = {0, 1'000'000};
    if (call(__NR_clock_nanosleep, 1, 0, address(&t), 0) != 0) {
      say("FAIL: clock_nanosleep was interrupted\n");
      leave(1);
    }
    thread_count = thread_count + 1;
  }
}

static void start_thread() {
  long flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
               CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
  register long r10 asm("r10") = address(&thread_tid);
  register long r8 asm("r8") = 0;
  long result;
  asm volatile(
      "syscall\n"
      "test %%rax, %%rax\n"
      "jnz 1f\n"
      "xor %%ebp, %%ebp\n"
      "jmp *%[body]\n"
      "1:\n"
      : "=a"(result)
      : "0"(__NR_clone), "D"(flags), "S"(thread_stack + sizeof thread_stack - 8), "d"(0), "r"(r10),
        "r"(r8), [body] "b"(thread_body)
      : "rcx", "r11", "memory");
  if (result < 0) {
    say("FAIL: set-up: clone\n");
    leave(1);
  }
}

static void wait_for_check() {
  const char* wanted = "check\n";
  for (int matched = 0; matched < 6;) {
    char c = 0;
    if (call(__NR_read, 0, address(&c), 1) != 1) {
      say("FAIL: stdin ended\n");
      leave(1);
    }
    matched = c == wanted[matched] ? matched + 1 : 0;
  }
}

extern "C" [[noreturn, gnu::used]] void program() {
  for (u64 i = 0; i < sizeof data / 8; ++i) data[i] = i * 0x9e3779b97f4a7c15;
  long pid = call(__NR_getpid);
  start_thread();
  say("ready\n");
  wait_for_check();
  bool good = true;
  for (u64 i = 0; i < sizeof data / 8; ++i) good &= data[i] == i * 0x9e3779b97f4a7c15;
  if (!good) say("FAIL: data changed\n");
  if (call(__NR_getpid) != pid) {
    say("FAIL: pid changed\n");
    good = false;
  }
  u64 before = thread_count;
  for (int tries = 0; tries < 10'000 && thread_count < before + 10; ++tries) {
    __kernel_timespec t = {0, 1'000'000};
    call(__NR_nanosleep, address(&t), 0);
  }
  if (thread_count < before + 10) {
    say("FAIL: the thread stands still\n");
    good = false;
  }
  if (good) say("ok\n");
  leave(good ? 0 : 1);
}

asm(".globl _start\n_start: xor %ebp, %ebp\n and $-16, %rsp\n call program\n");
