// CLOCK_MONOTONIC_RAW: never back, and as far from CLOCK_MONOTONIC as it was. Between kernels that
// is beyond anybody's power: a time namespace has one offset for both, and they drift apart as NTP
// slews the latter.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr int64_t slack_ns = 200'000'000;  // We may be off the processor between two reads.
  const int64_t apart_ns = now_ns(CLOCK_MONOTONIC_RAW) - now_ns();
  auto watch = [&](std::atomic<bool>& stop) {
    for (int64_t last = now_ns(CLOCK_MONOTONIC_RAW); !stop;) {
      const int64_t before = now_ns(), raw = now_ns(CLOCK_MONOTONIC_RAW), after = now_ns();
      if (!check(raw >= last, "it went back by %lld ns", static_cast<long long>(last - raw)))
        return;
      if (!check(raw - apart_ns >= before - slack_ns && raw - apart_ns <= after + slack_ns,
                 "it was %lld ns from CLOCK_MONOTONIC, and is %lld now",
                 static_cast<long long>(apart_ns), static_cast<long long>(raw - before)))
        return;
      last = raw;
      usleep(20);
    }
  };
  {
    Background a(watch), b(watch);
    ready();
    wait_moved();
  }
  return ok();
}
