// pause(2).
#include "calls.h"
using namespace tracee;

int main() {
  catch_quietly(SIGUSR1);
  BlockedCall pausing("pause", SYS_pause, []() -> long { return sys_result(syscall(SYS_pause)); });
  ready();
  wait_moved();
  pausing.check_still_blocked();
  syscall(SYS_tgkill, getpid(), pausing.tid(), SIGUSR1);
  pausing.check_returns(-EINTR);
  return ok();
}
