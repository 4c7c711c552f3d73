// pid, parent, group and session; and the child subreaper flag.
#include "tracee.h"
using namespace tracee;

int main() {
  need(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "PR_SET_CHILD_SUBREAPER");
  pid_t pid = getpid(), parent = getppid(), group = getpgrp(), session = getsid(0);
  ready();
  wait_moved();
  same("pid", pid, static_cast<pid_t>(syscall(SYS_getpid)));
  same("parent", parent, getppid());
  same("group", group, getpgrp());
  same("session", session, getsid(0));
  int subreaper = 0;
  check(prctl(PR_GET_CHILD_SUBREAPER, &subreaper) == 0 && subreaper == 1,
        "the process isn't a subreaper any more");
  same("pid in /proc", std::to_string(pid), status_field("Pid"));
  return ok();
}
