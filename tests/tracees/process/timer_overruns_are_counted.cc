// A periodic timer whose signal is blocked: the overrun count tells of every expiry, also of those
// before a move.
#include "tracee.h"
using namespace tracee;

int main() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 1);
  need(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0, "pthread_sigmask");
  struct sigevent event = {};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN + 1;
  timer_t timer;
  need(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
  constexpr long period_ns = 2'000'000;
  itimerspec spec = {{0, period_ns}, {0, period_ns}};
  need(timer_settime(timer, 0, &spec, nullptr) == 0, "timer_settime");
  int64_t start = now_ns();
  usleep(50'000);
  ready();
  wait_moved();
  siginfo_t info = {};
  timespec limit = {30, 0};
  same("signal", SIGRTMIN + 1, sigtimedwait(&set, &info, &limit));
  int64_t expected = (now_ns() - start) / period_ns;
  check(info.si_overrun >= 20, "%d overruns after %lld periods", info.si_overrun,
        static_cast<long long>(expected));
  check(info.si_overrun <= expected, "%d overruns after only %lld periods", info.si_overrun,
        static_cast<long long>(expected));
  same("timer_getoverrun", info.si_overrun, timer_getoverrun(timer));
  same("next signal", SIGRTMIN + 1, sigtimedwait(&set, &info, &limit));
  return ok();
}
