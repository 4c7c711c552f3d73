// A counter of perf_event_open.
#include <linux/perf_event.h>

#include "tracee.h"
using namespace tracee;

int main() {
  perf_event_attr attributes = {};
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.size = sizeof attributes;
  attributes.config = PERF_COUNT_SW_PAGE_FAULTS;
  attributes.exclude_kernel = 1;
  int fd = static_cast<int>(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0));
  if (fd < 0) skip("no perf_event_open: errno %d", errno);
  ready();
  wait_moved();
  uint64_t count = 0;
  check(read(fd, &count, 8) == 8, "read: errno %d", errno);
  return ok();
}
