// sigaltstack of two threads, used by a handler after the move, and one that is in use during it.
#include "tracee.h"
using namespace tracee;

constexpr size_t stack_bytes = 64 * KiB;
thread_local uint8_t* own_stack;
std::atomic<int> on_own_stack{0}, elsewhere{0}, inside{0};
std::atomic<bool> leave{false};

void handler(int signal) {
  uint8_t here;
  (&here >= own_stack && &here < own_stack + stack_bytes ? on_own_stack : elsewhere)++;
  if (signal == SIGUSR2) {
    ++inside;
    while (!leave) usleep(1000);
    stack_t now = {};
    check(sigaltstack(nullptr, &now) == 0 && (now.ss_flags & SS_ONSTACK) != 0,
          "SS_ONSTACK is gone: flags %d", now.ss_flags);
  }
}

void set_stack() {
  own_stack = map(stack_bytes);
  stack_t stack = {};
  stack.ss_sp = own_stack;
  stack.ss_size = stack_bytes;
  need(sigaltstack(&stack, nullptr) == 0, "sigaltstack");
}

int main() {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_ONSTACK | SA_RESTART;
  need(sigaction(SIGUSR1, &action, nullptr) == 0 && sigaction(SIGUSR2, &action, nullptr) == 0,
       "sigaction");
  std::atomic<bool> go{false};
  std::atomic<int> started{0};
  std::atomic<pid_t> user{0};
  std::thread quiet([&] {
    set_stack();
    ++started;
    while (!go) usleep(1000);
    raise(SIGUSR1);
    stack_t now = {};
    check(sigaltstack(nullptr, &now) == 0, "sigaltstack: errno %d", errno);
    check(now.ss_sp == own_stack && now.ss_size == stack_bytes && now.ss_flags == 0,
          "alternate stack is %p, %zu bytes, flags %d", now.ss_sp, now.ss_size, now.ss_flags);
  });
  std::thread busy([&] {
    set_stack();
    user = gettid_now();
    ++started;
    while (!go) usleep(1000);
  });
  need(eventually([&] { return started == 2; }), "threads");
  need(syscall(SYS_tgkill, getpid(), user.load(), SIGUSR2) == 0 &&
           eventually([] { return inside == 1; }),
       "handler");
  ready();
  wait_moved();
  leave = true;
  go = true;
  quiet.join();
  busy.join();
  same("handlers on their alternate stack", 2, on_own_stack.load());
  same("handlers elsewhere", 0, elsewhere.load());
  return ok();
}
