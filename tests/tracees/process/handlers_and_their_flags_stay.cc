// sigaction of all 64 signals, as the kernel keeps them: handler, flags, mask, restorer.
#include "tracee.h"
using namespace tracee;

struct KernelAction {
  uint64_t handler, flags, restorer, mask;
  bool operator==(const KernelAction&) const = default;
};

long get(int signal, KernelAction* action) {
  return syscall(SYS_rt_sigaction, signal, nullptr, action, 8);
}

std::atomic<int> handled{0};
void handler(int) { ++handled; }

int main() {
  const int flags[] = {
      0, SA_RESTART, SA_NODEFER, SA_SIGINFO, SA_ONSTACK, SA_NOCLDSTOP, SA_SIGINFO | SA_RESTART};
  for (int s = 1; s < NSIG; ++s) {
    if (s == SIGKILL || s == SIGSTOP || s == 32 || s == 33 || s == SIGSEGV) continue;
    struct sigaction action = {};
    action.sa_flags = flags[s % 7];
    if (s % 5 == 0) {
      action.sa_handler = SIG_IGN;
    } else if (s % 5 != 1) {
      action.sa_handler = handler;
      sigaddset(&action.sa_mask, s % 31 + 1);
    }
    need(sigaction(s, &action, nullptr) == 0, "sigaction(%d)", s);
  }
  struct sigaction once = {};
  once.sa_handler = handler;
  once.sa_flags = static_cast<int>(SA_RESETHAND);
  need(sigaction(SIGUSR2, &once, nullptr) == 0, "sigaction");
  KernelAction before[NSIG] = {}, now[NSIG] = {};
  for (int s = 1; s < NSIG; ++s) need(get(s, &before[s]) == 0, "rt_sigaction(%d)", s);
  ready();
  wait_moved();
  for (int s = 1; s < NSIG; ++s) {
    check(get(s, &now[s]) == 0, "rt_sigaction(%d): errno %d", s, errno);
    check(before[s] == now[s],
          "signal %d: handler 0x%lx flags 0x%lx restorer 0x%lx mask 0x%lx were 0x%lx 0x%lx 0x%lx "
          "0x%lx",
          s, now[s].handler, now[s].flags, now[s].restorer, now[s].mask, before[s].handler,
          before[s].flags, before[s].restorer, before[s].mask);
  }
  raise(SIGUSR2);
  same("handlers that ran", 1, handled.load());
  check(get(SIGUSR2, &now[0]) == 0 && now[0].handler == 0, "SA_RESETHAND doesn't reset");
  return ok();
}
