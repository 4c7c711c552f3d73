// An epoll instance that watches a file under a number which now is another file's.
#include <sys/epoll.h>

#include "tracee.h"
using namespace tracee;

int main() {
  int epoll = epoll_create1(0), ends[2];
  need(epoll >= 0 && pipe(ends) == 0, "epoll_create1, pipe");
  epoll_event wanted = {};
  wanted.events = EPOLLIN;
  wanted.data.u64 = 7;
  need(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &wanted) == 0, "epoll_ctl");
  int kept = dup(ends[0]);
  close(ends[0]);
  int reused = open("/dev/null", O_RDONLY);
  need(kept >= 0 && reused == ends[0], "dup, open");
  ready();
  wait_moved();
  check(write(ends[1], "x", 1) == 1, "write: errno %d", errno);
  epoll_event got = {};
  same("events", 1, epoll_wait(epoll, &got, 1, 30'000));
  same("data", 7, static_cast<int>(got.data.u64));
  return ok();
}
