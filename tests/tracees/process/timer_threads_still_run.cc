// SIGEV_THREAD: glibc's helper thread waits in sigwaitinfo and starts a thread for each expiry.
#include "tracee.h"
using namespace tracee;

std::atomic<uint64_t> ticks{0};

int main() {
  // As in whatever posix_spawn starts: glibc's own signals, SIGEV_THREAD's among them, are ignored.
  constexpr int glibc_timer_signal = 32;
  const uint64_t ignore[4] = {1, 0, 0, 0};  // The kernel's struct sigaction with SIG_IGN.
  need(syscall(SYS_rt_sigaction, glibc_timer_signal, ignore, nullptr, 8) == 0, "rt_sigaction");
  struct sigevent event = {};
  event.sigev_notify = SIGEV_THREAD;
  event.sigev_value.sival_int = 42;
  event.sigev_notify_function = [](sigval value) { ticks += value.sival_int == 42; };
  timer_t timer;
  need(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
  itimerspec spec = {{0, 5'000'000}, {0, 5'000'000}};
  need(timer_settime(timer, 0, &spec, nullptr) == 0, "timer_settime");
  need(eventually([] { return ticks > 2; }), "ticks");
  ready();
  wait_moved();
  uint64_t before = ticks;
  check(eventually([&] { return ticks > before + 5; }), "the timer's threads come no more");
  return ok();
}
