// PR_SET_DUMPABLE 0, which also makes /proc/self belong to root: an engine must not trip over that.
#include "tracee.h"
using namespace tracee;

int main() {
  need(prctl(PR_SET_DUMPABLE, 0) == 0, "PR_SET_DUMPABLE");
  uint8_t* p = map(1 * MiB);
  fill(p, 1 * MiB, 4);
  ready();
  wait_moved();
  same("dumpable", 0, prctl(PR_GET_DUMPABLE));
  check_filled("memory", p, 1 * MiB, 4);
  return ok();
}
