// A sleep of a minute, interrupted by a signal after the moves: rmtp says what is left of it.
#include "calls.h"
using namespace tracee;

int main() {
  constexpr int64_t asked_us = 60'000'000;
  catch_quietly(SIGUSR1);
  timespec left = {-1, -1};
  int64_t start = now_us();
  BlockedCall sleeping("nanosleep", SYS_nanosleep, [&]() -> long {
    timespec t = timespec_of_us(asked_us);
    return sys_result(syscall(SYS_nanosleep, &t, &left));
  });
  ready();
  wait_moved();
  sleeping.check_still_blocked();
  int64_t slept_min = now_us() - start;
  syscall(SYS_tgkill, getpid(), sleeping.tid(), SIGUSR1);
  if (!sleeping.check_returns(-EINTR)) return 1;
  int64_t slept_max = now_us() - start;
  int64_t left_us = left.tv_sec * 1'000'000LL + left.tv_nsec / 1000;
  // At most what a minute less the time until the signal is; at least that less a move's lateness.
  check(left_us <= asked_us - slept_min + 1'000'000 && left_us >= asked_us - slept_max - 1'000'000,
        "%lld us left of a sleep that took %lld us", static_cast<long long>(left_us),
        static_cast<long long>(slept_max));
  return ok();
}
