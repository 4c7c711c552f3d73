// A child, and a thread that waits for it in waitid.
#include "calls.h"
using namespace tracee;

int main() {
  int pid = fork();
  if (pid == 0) {
    signal(SIGUSR1, [](int) { _exit(42); });
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) pause();
  }
  need(pid > 0, "fork");
  siginfo_t info = {};
  BlockedCall waiting("waitid", SYS_waitid, [&]() -> long {
    return sys_result(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED));
  });
  need(eventually([&] {
         return proc_field(read_file("/proc/" + std::to_string(pid) + "/status"), "State")
                    .substr(0, 1) == "S";
       }),
       "child");
  ready();
  wait_moved();
  waiting.check_still_blocked();
  check(kill(pid, SIGUSR1) == 0, "kill: errno %d", errno);
  waiting.check_returns(0);
  same("pid", pid, info.si_pid);
  same("exit code", 42, info.si_status);
  return ok();
}
