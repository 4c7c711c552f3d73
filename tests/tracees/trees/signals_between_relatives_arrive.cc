// A parent and a child that count each other's signals, and the end of the child, which the parent
// learns by SIGCHLD.
#include "family.h"
using namespace tracee;

namespace {

std::atomic<int> got{0}, ended{0};

}  // namespace

int main() {
  signal(SIGUSR1, [](int) { ++got; });
  signal(SIGCHLD, [](int) { ++ended; });
  const pid_t child = fork();
  if (child == 0) {
    sigset_t mask, none;
    sigemptyset(&none), sigemptyset(&mask), sigaddset(&mask, SIGUSR1);
    sigprocmask(SIG_BLOCK, &mask, nullptr);
    signal(SIGTERM, [](int) { _exit(9); });
    for (int answered = 0;;) {
      while (answered == got) sigsuspend(&none);
      ++answered;
      kill(getppid(), SIGUSR1);
    }
  }
  int asked = 0;
  auto round_trip = [&] {
    kill(child, SIGUSR1);
    ++asked;
    check(eventually([&] { return got == asked; }), "%d of %d signals came back", got.load(),
          asked);
  };
  round_trip();
  ready();
  while (!moved()) round_trip();
  round_trip();
  same("SIGCHLD", 0, ended.load());
  kill(child, SIGTERM);
  check(eventually([&] { return ended == 1; }), "no SIGCHLD");
  int status = 0;
  same("waitpid", child, waitpid(child, &status, 0));
  check(WIFEXITED(status) && WEXITSTATUS(status) == 9, "status 0x%x", status);
  return ok();
}
