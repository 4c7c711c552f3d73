// Rounding and flush-to-zero of SSE, different in each thread.
#include <fenv.h>
#include <xmmintrin.h>

#include "tracee.h"
using namespace tracee;

int main() {
  const unsigned wanted[] = {0x1f80, 0x3f80, 0x5f80, 0x7f80,
                             0x9fc0};  // The four roundings; FTZ and DAZ.
  std::vector<std::thread> threads;
  std::atomic<bool> stop{false};
  for (unsigned w : wanted) {
    threads.emplace_back([w, &stop] {
      _mm_setcsr(w);
      volatile double one = 1, three = 3;
      double expected = one / three;
      while (!stop) {
        double now = one / three;
        if (!check(now == expected, "a division rounds otherwise under MXCSR 0x%x", w)) return;
        // The sticky flags (low six bits) are ours to set by computing.
        if (!same("MXCSR", w & ~0x3fU, _mm_getcsr() & ~0x3fU)) return;
      }
    });
  }
  ready();
  wait_moved();
  stop = true;
  for (auto& t : threads) t.join();
  return ok();
}
