// SECCOMP_MODE_STRICT: read, write, _exit and sigreturn only.
#include <linux/seccomp.h>

#include "tracee.h"
using namespace tracee;

int main() {
  uint8_t* p = map(1 * MiB);
  fill(p, 1 * MiB, 3);
  need(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0, "PR_SET_SECCOMP");
  ready();
  wait_moved();
  check_filled("memory", p, 1 * MiB, 3);
  if (failures == 0) say("ok");
  syscall(SYS_exit, failures == 0 ? 0 : 1);  // exit_group is forbidden.
}
