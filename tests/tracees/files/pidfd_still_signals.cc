// A pidfd of oneself, and one of a child: they signal, and tell its end, also to who polls.
#include <sys/epoll.h>

#include "tracee.h"
using namespace tracee;

int main() {
  int stay[2];
  need(pipe(stay) == 0, "pipe");
  const pid_t child = fork();
  if (child == 0) {
    close(stay[1]);
    char c;
    while (read(stay[0], &c, 1) < 0) {
    }
    _exit(7);
  }
  need(child > 0, "fork");
  const int own = static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0));
  const int childs = static_cast<int>(syscall(SYS_pidfd_open, child, O_NONBLOCK));
  const int epoll = epoll_create1(0);
  epoll_event event{};
  event.events = EPOLLIN;
  need(
      own >= 0 && childs >= 0 && epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, childs, &event) == 0,
      "pidfds");
  ready();
  wait_moved();
  for (int fd : {own, childs})
    check(syscall(SYS_pidfd_send_signal, fd, 0, nullptr, 0) == 0, "pidfd_send_signal: errno %d",
          errno);
  check((fcntl(childs, F_GETFL) & O_NONBLOCK) != 0, "it isn't O_NONBLOCK any more");
  check(epoll_wait(epoll, &event, 1, 0) == 0, "the child has ended");
  close(stay[1]);
  check(epoll_wait(epoll, &event, 1, 60'000) == 1, "the child's end doesn't show");
  siginfo_t info{};
  check(waitid(P_PIDFD, static_cast<id_t>(childs), &info, WEXITED) == 0, "waitid: errno %d", errno);
  same("status", 7, info.si_status);
  return ok();
}
