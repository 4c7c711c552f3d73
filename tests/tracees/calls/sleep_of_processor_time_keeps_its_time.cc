// clock_nanosleep on CLOCK_PROCESS_CPUTIME_ID: wakes when the process has used that much processor
// time. The clock itself starts again at each move (no kernel lets it be set), what is left doesn't.
#include "calls.h"
using namespace tracee;

int main() {
  constexpr int64_t asked_us = 800'000, late_us_max = 500'000;
  std::atomic<int64_t> used_us{0};
  // Summed up in steps: where the clock began anew only that step is lost.
  Background burner([&](std::atomic<bool>& stop) {
    for (int64_t last = now_us(CLOCK_THREAD_CPUTIME_ID); !stop;) {
      for (int spin = 0; spin < 2000; ++spin) asm volatile("pause");
      int64_t now = now_us(CLOCK_THREAD_CPUTIME_ID);
      if (now > last) used_us += now - last;
      last = now;
    }
  });
  std::atomic<int> calls{0};
  std::atomic<pid_t> tid{0};
  Background sleeper([&](std::atomic<bool>& stop) {
    tid = gettid_now();
    while (!stop) {
      int64_t start = used_us;
      timespec t = timespec_of_us(asked_us), left = {};
      long result = sys_result(
          syscall(SYS_clock_nanosleep, CLOCK_PROCESS_CPUTIME_ID, 0, &t, &left));
      int64_t took = used_us - start;
      same("clock_nanosleep", 0L, result);
      check(took >= asked_us * 8 / 10, "woke after %lld us of processor time, asked for %lld",
            static_cast<long long>(took), static_cast<long long>(asked_us));
      check(took <= asked_us + late_us_max,
            "woke after %lld us of processor time, asked for %lld", static_cast<long long>(took),
            static_cast<long long>(asked_us));
      ++calls;
    }
  });
  need(eventually([&] { return tid != 0 && blocked_in(tid) == SYS_clock_nanosleep; }), "sleeps");
  ready();
  wait_moved();
  sleeper.finish();
  check(calls > 0, "no sleep came to its end");
  return ok();
}
