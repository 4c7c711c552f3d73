// O_ASYNC with a signal of its own, on the reading end of a pipe.
#include "tracee.h"
using namespace tracee;

int main() {
  int ends[2];
  need(pipe(ends) == 0, "pipe");
  const int signal = SIGRTMIN + 2;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  need(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0, "pthread_sigmask");
  need(fcntl(ends[0], F_SETOWN, getpid()) == 0 && fcntl(ends[0], F_SETSIG, signal) == 0 &&
           fcntl(ends[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0,
       "F_SETOWN, F_SETSIG, O_ASYNC");
  ready();
  wait_moved();
  siginfo_t info = {};
  timespec none = {};
  check(sigtimedwait(&set, &info, &none) == -1 && errno == EAGAIN, "a signal came by the move");
  check(write(ends[1], "s", 1) == 1, "write: errno %d", errno);
  timespec limit = {60, 0};
  same("signal", signal, sigtimedwait(&set, &info, &limit));
  same("descriptor that it names", ends[0], info.si_fd);
  same("F_GETFL", O_ASYNC | O_NONBLOCK, fcntl(ends[0], F_GETFL));
  return ok();
}
