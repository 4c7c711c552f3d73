// Signals queued to one blocked thread, with values, in order; none reaches another thread.
#include "tracee.h"
using namespace tracee;

int main() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGRTMIN);
  sigaddset(&set, SIGRTMIN + 1);
  need(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0, "pthread_sigmask");
  constexpr int values_count = 20;
  std::atomic<bool> go{false}, queued{false};
  std::thread thread([&] {
    for (int i = 0; i < values_count; ++i)
      need(pthread_sigqueue(pthread_self(), SIGRTMIN + i % 2, {.sival_int = i}) == 0,
           "pthread_sigqueue");
    need(syscall(SYS_tgkill, getpid(), gettid_now(), SIGUSR1) == 0, "tgkill");
    queued = true;
    while (!go) usleep(1000);
    timespec none = {};
    siginfo_t info;
    same("first: the plain signal", SIGUSR1, sigtimedwait(&set, &info, &none));
    same("its code", SI_USER, info.si_code);  // glibc shows SI_TKILL as this.
    for (int i = 0; i < values_count; ++i) {  // The lower number first, each in order.
      int expected = i < values_count / 2 ? 2 * i : 2 * (i - values_count / 2) + 1;
      if (!same("queued signal", SIGRTMIN + expected % 2, sigtimedwait(&set, &info, &none))) return;
      same("value", expected, info.si_value.sival_int);
      same("code", SI_QUEUE, info.si_code);
      same("sender", getpid(), info.si_pid);
      same("sender's user", static_cast<int>(getuid()), static_cast<int>(info.si_uid));
    }
    check(sigtimedwait(&set, &info, &none) == -1 && errno == EAGAIN, "one signal too many: %d",
          info.si_signo);
  });
  need(eventually([&] { return queued.load(); }), "thread");
  ready();
  wait_moved();
  sigset_t pending;
  sigpending(&pending);
  check(!sigismember(&pending, SIGRTMIN) && !sigismember(&pending, SIGUSR1),
        "the main thread has the other's signals");
  go = true;
  thread.join();
  return ok();
}
