// A child that has ended and wasn't waited for yet.
#include "tracee.h"
using namespace tracee;

int main() {
  int pid = fork();
  if (pid == 0) _exit(37);
  need(pid > 0, "fork");
  siginfo_t info = {};
  need(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) == 0, "waitid");
  ready();
  wait_moved();
  int status = 0;
  same("waitpid", pid, waitpid(pid, &status, WNOHANG));
  check(WIFEXITED(status) && WEXITSTATUS(status) == 37, "status 0x%x", status);
  return ok();
}
