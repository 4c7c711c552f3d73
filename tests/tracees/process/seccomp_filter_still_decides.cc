// Filters that return an errno with their data, TRAP with its siginfo, and LOG; the mode in
// /proc/self/status.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>

#include "tracee.h"
using namespace tracee;

std::atomic<int> trapped{0}, trap_call{0}, trap_data{0};

int main() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 77),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpgid, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP | 12),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program = {sizeof code / sizeof code[0], code};
  struct sigaction action = {};
  action.sa_sigaction = [](int, siginfo_t* info, void*) {
    ++trapped;
    trap_call = info->si_syscall;
    trap_data = info->si_errno;
  };
  action.sa_flags = SA_SIGINFO;
  need(sigaction(SIGSYS, &action, nullptr) == 0, "sigaction");
  need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
  need(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0, "seccomp");
  ready();
  while (!moved()) {
    if (!check(syscall(SYS_getppid) == -1 && errno == 77, "the filter doesn't decide any more"))
      break;
    usleep(100);
  }
  wait_moved();
  syscall(SYS_getpgid, 0);
  same("traps", 1, trapped.load());
  same("call that was trapped", SYS_getpgid, trap_call.load());
  same("data of the trap", 12, trap_data.load());
  same("Seccomp", "2", status_field("Seccomp"));
  same("Seccomp_filters", "1", status_field("Seccomp_filters"));
  return ok();
}
