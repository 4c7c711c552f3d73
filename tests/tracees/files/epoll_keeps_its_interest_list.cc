// epoll_wait and epoll_pwait with a timeout; what an instance watches, how and with which data: an
// eventfd, a pipe, a signalfd, a timerfd, another instance, one descriptor under two numbers.
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#include <map>

#include "calls.h"
using namespace tracee;

namespace {

void add(int epoll, int fd, uint32_t events, uint64_t data) {
  epoll_event wanted = {};
  wanted.events = events;
  wanted.data.u64 = data;
  need(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted) == 0, "epoll_ctl(%d)", fd);
}

std::map<uint64_t, uint32_t> ready_now(int epoll) {
  epoll_event got[16];
  int n = epoll_wait(epoll, got, 16, 0);
  check(n >= 0, "epoll_wait: errno %d", errno);
  std::map<uint64_t, uint32_t> all;
  for (int i = 0; i < n; ++i) all[got[i].data.u64] = got[i].events;
  return all;
}

}  // namespace

int main() {
  int quiet = epoll_create1(EPOLL_CLOEXEC), event = eventfd(0, 0);
  need(quiet >= 0 && event >= 0, "epoll_create1");
  add(quiet, event, EPOLLIN | EPOLLET, 0x1234567890);

  int watching = epoll_create1(0), pipes[2], other[2];
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 4);
  need(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0, "pthread_sigmask");
  int signals = signalfd(-1, &set, SFD_NONBLOCK), timer = timerfd_create(CLOCK_MONOTONIC, 0);
  need(pipe(pipes) == 0 && pipe(other) == 0 && signals >= 0 && timer >= 0, "set-up");
  int twice = dup(pipes[0]), duplicate = dup(watching);
  add(watching, pipes[0], EPOLLIN, 1);
  add(watching, twice, EPOLLIN | EPOLLONESHOT, 2);
  add(watching, signals, EPOLLIN | EPOLLEXCLUSIVE, 3);
  add(watching, timer, EPOLLIN, 4);
  add(watching, quiet, EPOLLIN, 5);
  add(watching, other[1], EPOLLOUT, 6);

  TimedCall wait("epoll_wait", SYS_epoll_wait, 0, [&](int64_t us) -> long {
    epoll_event got;
    return sys_result(epoll_wait(quiet, &got, 1, static_cast<int>(us / 1000)));
  });
  TimedCall pwait("epoll_pwait", SYS_epoll_pwait, 0, [&](int64_t us) -> long {
    epoll_event got;
    sigset_t mask;
    sigemptyset(&mask);
    return sys_result(epoll_pwait(quiet, &got, 1, static_cast<int>(us / 1000), &mask));
  });
  ready();
  wait_moved();
  wait.finish();
  pwait.finish();
  check(ready_now(watching) == std::map<uint64_t, uint32_t>{{6, EPOLLOUT}},
        "ready without a cause");
  uint64_t one = 1;
  check(write(event, &one, 8) == 8 && write(pipes[1], "p", 1) == 1, "write: errno %d", errno);
  check(sigqueue(getpid(), SIGRTMIN + 4, {.sival_int = 9}) == 0, "sigqueue: errno %d", errno);
  itimerspec soon = {{0, 0}, {0, 1}};
  check(timerfd_settime(timer, 0, &soon, nullptr) == 0, "timerfd_settime: errno %d", errno);
  std::map<uint64_t, uint32_t> all = {{1, EPOLLIN}, {2, EPOLLIN}, {3, EPOLLIN},
                                      {4, EPOLLIN}, {5, EPOLLIN}, {6, EPOLLOUT}};
  pollfd asked = {timer, POLLIN, 0};
  check(poll(&asked, 1, 60'000) == 1, "the timer doesn't expire");
  check(ready_now(duplicate) == all, "not all that happened is shown");
  all.erase(2);  // One shot.
  check(ready_now(watching) == all, "a one-shot watch is still there, or another is not");
  epoll_event got = {};
  same("events", 1, epoll_wait(quiet, &got, 1, 30'000));
  same("data", 0x1234567890, static_cast<int64_t>(got.data.u64));
  same("edges", 0, epoll_wait(quiet, &got, 1, 0));
  check(epoll_ctl(watching, EPOLL_CTL_DEL, twice, nullptr) == 0, "epoll_ctl: errno %d", errno);
  check((fcntl(quiet, F_GETFD) & FD_CLOEXEC) != 0, "close-on-exec is gone");
  return ok();
}
