// eventfd: a counter, the largest count, a semaphore, and threads that wait for one.
#include <sys/eventfd.h>

#include "calls.h"
using namespace tracee;

int main() {
  int counter = eventfd(41, EFD_NONBLOCK), semaphore = eventfd(3, EFD_SEMAPHORE | EFD_CLOEXEC),
      empty = eventfd(0, 0), full = eventfd(0, 0);
  need(counter >= 0 && semaphore >= 0 && empty >= 0 && full >= 0, "eventfd");
  int duplicate = dup(counter);
  const uint64_t most = ~1ull;
  need(write(full, &most, 8) == 8, "write");
  const int flags = fcntl(counter, F_GETFL);
  uint64_t got = 0, one = 1;
  BlockedCall reading("read of an eventfd", SYS_read,
                      [&]() -> long { return sys_result(read(empty, &got, 8)); });
  BlockedCall writing("write to a full eventfd", SYS_write,
                      [&]() -> long { return sys_result(write(full, &one, 8)); });
  ready();
  wait_moved();
  reading.check_still_blocked();
  writing.check_still_blocked();
  uint64_t value = 5;
  check(write(empty, &value, 8) == 8, "write: errno %d", errno);
  reading.check_returns(8);
  same("value", 5, got);
  check(read(full, &value, 8) == 8 && value == most, "full: %lu", value);
  writing.check_returns(8);
  check(read(full, &value, 8) == 8 && value == 1, "what was written late: %lu", value);
  check(read(duplicate, &value, 8) == 8 && value == 41, "counter: %lu", value);
  check(read(counter, &value, 8) == -1 && errno == EAGAIN, "the duplicate counts for itself");
  same("F_GETFL", flags, fcntl(counter, F_GETFL));
  same("F_GETFD", FD_CLOEXEC, fcntl(semaphore, F_GETFD));
  for (int i = 0; i < 3; ++i)
    check(read(semaphore, &value, 8) == 8 && value == 1, "semaphore: %lu", value);
  pollfd asked = {semaphore, POLLIN, 0};
  same("it is used up", 0, poll(&asked, 1, 0));
  return ok();
}
