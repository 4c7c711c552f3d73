// PR_MCE_KILL: what happens to this thread at a memory error.
#include "tracee.h"
using namespace tracee;

int main() {
  if (prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) != 0)
    skip("no PR_MCE_KILL: errno %d", errno);
  ready();
  wait_moved();
  same("PR_MCE_KILL_GET", PR_MCE_KILL_EARLY, prctl(PR_MCE_KILL_GET, 0, 0, 0, 0));
  return ok();
}
