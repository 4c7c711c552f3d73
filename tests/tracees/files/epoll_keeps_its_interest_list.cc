// epoll_wait and epoll_pwait with a timeout, and the descriptors it watches with their data.
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "calls.h"
using namespace tracee;

int main() {
  int epoll = epoll_create1(EPOLL_CLOEXEC), event = eventfd(0, 0);
  need(epoll >= 0 && event >= 0, "epoll_create1");
  epoll_event wanted = {};
  wanted.events = EPOLLIN | EPOLLET;
  wanted.data.u64 = 0x1234567890;
  need(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted) == 0, "epoll_ctl");
  TimedCall wait("epoll_wait", SYS_epoll_wait, 0, [&](int64_t us) -> long {
    epoll_event got;
    return sys_result(epoll_wait(epoll, &got, 1, static_cast<int>(us / 1000)));
  });
  TimedCall pwait("epoll_pwait", SYS_epoll_pwait, 0, [&](int64_t us) -> long {
    epoll_event got;
    sigset_t mask;
    sigemptyset(&mask);
    return sys_result(epoll_pwait(epoll, &got, 1, static_cast<int>(us / 1000), &mask));
  });
  ready();
  wait_moved();
  wait.finish();
  pwait.finish();
  uint64_t one = 1;
  check(write(event, &one, 8) == 8, "write: errno %d", errno);
  epoll_event got = {};
  same("events", 1, epoll_wait(epoll, &got, 1, 30'000));
  same("data", 0x1234567890, static_cast<int64_t>(got.data.u64));
  return ok();
}
