// A context of io_setup, and a thread in io_getevents.
#include <linux/aio_abi.h>

#include "calls.h"
using namespace tracee;

int main() {
  aio_context_t context = 0;
  if (syscall(SYS_io_setup, 8, &context) != 0) skip("no io_setup: errno %d", errno);
  TimedCall waiting("io_getevents", SYS_io_getevents, 0, [&](int64_t us) -> long {
    timespec limit = timespec_of_us(us);
    io_event event;
    return sys_result(syscall(SYS_io_getevents, context, 1, 1, &event, &limit));
  });
  ready();
  wait_moved();
  waiting.finish();
  check(syscall(SYS_io_destroy, context) == 0, "io_destroy: errno %d", errno);
  return ok();
}
