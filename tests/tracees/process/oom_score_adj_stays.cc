// /proc/self/oom_score_adj, raised.
#include "tracee.h"
using namespace tracee;

int main() {
  write_file("/proc/self/oom_score_adj", "371");
  ready();
  wait_moved();
  same("oom_score_adj", "371\n", read_file("/proc/self/oom_score_adj"));
  return ok();
}
