// eventfd: a counter, a semaphore, and a thread that waits for one.
#include <sys/eventfd.h>

#include "calls.h"
using namespace tracee;

int main() {
  int counter = eventfd(41, EFD_NONBLOCK), semaphore = eventfd(3, EFD_SEMAPHORE),
      empty = eventfd(0, 0);
  need(counter >= 0 && semaphore >= 0 && empty >= 0, "eventfd");
  uint64_t got = 0;
  BlockedCall waiting("read of an eventfd", SYS_read,
                      [&]() -> long { return sys_result(read(empty, &got, 8)); });
  ready();
  wait_moved();
  waiting.check_still_blocked();
  uint64_t value = 5;
  check(write(empty, &value, 8) == 8, "write: errno %d", errno);
  waiting.check_returns(8);
  same("value", 5, got);
  check(read(counter, &value, 8) == 8 && value == 41, "counter: %lu", value);
  check(read(semaphore, &value, 8) == 8 && value == 1, "semaphore: %lu", value);
  return ok();
}
