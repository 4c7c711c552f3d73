// O_ASYNC and F_SETSIG on stdin: the next byte that comes after the moves sends the signal.
#include "tracee.h"
using namespace tracee;

std::atomic<int> signals{0}, descriptor{-1};

int main() {
  struct sigaction action = {};
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  action.sa_sigaction = [](int, siginfo_t* info, void*) {
    descriptor = info->si_fd;
    ++signals;
  };
  need(sigaction(SIGRTMIN + 2, &action, nullptr) == 0, "sigaction");
  need(fcntl(0, F_SETOWN, getpid()) == 0 && fcntl(0, F_SETSIG, SIGRTMIN + 2) == 0, "F_SETOWN");
  int flags = fcntl(0, F_GETFL);
  need(fcntl(0, F_SETFL, flags | O_ASYNC) == 0, "O_ASYNC");
  ready();
  wait_moved();
  same("flags", flags | O_ASYNC, fcntl(0, F_GETFL));
  check(eventually([] { return signals > 0; }), "no signal came");
  same("its descriptor", 0, descriptor.load());
  return ok();
}
