// MONOTONIC, MONOTONIC_COARSE, BOOTTIME and REALTIME, in several threads and between
// them: never back, and no jump beyond what CLOCK_REALTIME shows as well, though nodes booted hours
// apart.
#include "tracee.h"
using namespace tracee;

int main() {
  std::atomic<int64_t> newest_ns{now_ns()};
  auto watch = [&](std::atomic<bool>& stop) {
    const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME};
    int64_t last[3];
    for (int i = 0; i < 3; ++i) last[i] = now_ns(clocks[i]);
    int64_t last_real = now_ns(CLOCK_REALTIME);
    while (!stop) {
      // What another thread has seen is past for us too.
      int64_t seen = newest_ns, now = now_ns();
      if (!check(now >= seen, "CLOCK_MONOTONIC is %lld ns behind another thread's",
                 static_cast<long long>(seen - now)))
        return;
      while (seen < now && !newest_ns.compare_exchange_weak(seen, now)) {
      }
      int64_t real_gap = now_ns(CLOCK_REALTIME) - last_real;
      for (int i = 0; i < 3; ++i) {
        now = now_ns(clocks[i]);
        int64_t step = now - last[i];
        if (!check(step >= 0, "clock %d went back by %lld ns", clocks[i],
                   static_cast<long long>(-step)))
          return;
        constexpr int64_t slack_ns = 200'000'000;  // We may be off the processor between two reads.
        if (!check(step <= real_gap + slack_ns ||
                       now_ns(CLOCK_REALTIME) - last_real + slack_ns >= step,
                   "clock %d jumped by %lld ns while CLOCK_REALTIME went on by %lld", clocks[i],
                   static_cast<long long>(step), static_cast<long long>(real_gap)))
          return;
        last[i] = now;
      }
      last_real = now_ns(CLOCK_REALTIME);
      usleep(20);
    }
  };
  {
    Background a(watch), b(watch), c(watch);
    ready();
    wait_moved();
  }
  return ok();
}
