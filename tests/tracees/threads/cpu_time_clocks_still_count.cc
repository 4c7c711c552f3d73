// Clocks of consumed processor time: they go on counting at the right rate, of the process and of a
// thread. What was consumed before the first move can't be set in any kernel: a clock may start
// again, but not stand still.
#include "tracee.h"
using namespace tracee;

int main() {
  ready();
  wait_moved();
  auto burn = [](clockid_t clock) {
    int64_t start = now_us(clock), wall = now_us();
    while (now_us(clock) - start < 20'000 && now_us() - wall < 30'000'000) {
    }
    return now_us(clock) - start;
  };
  int64_t process = burn(CLOCK_PROCESS_CPUTIME_ID);
  check(process >= 20'000, "the process' clock counted %lld us", static_cast<long long>(process));
  int64_t thread = burn(CLOCK_THREAD_CPUTIME_ID);
  check(thread >= 20'000, "the thread's clock counted %lld us", static_cast<long long>(thread));
  clockid_t by_id;
  check(pthread_getcpuclockid(pthread_self(), &by_id) == 0 && burn(by_id) >= 20'000,
        "the clock by thread id doesn't count");
  return ok();
}
