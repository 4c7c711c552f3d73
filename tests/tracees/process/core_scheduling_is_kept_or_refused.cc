// A cookie of core scheduling (prctl(PR_SCHED_CORE)).
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr int pr_sched_core = 62, get = 0, create = 1, scope_thread = 0;
  unsigned long cookie = 0, now = 0;
  if (prctl(pr_sched_core, create, 0, scope_thread, 0) != 0)
    skip("no core scheduling: errno %d", errno);
  need(prctl(pr_sched_core, get, 0, scope_thread, &cookie) == 0 && cookie != 0, "PR_SCHED_CORE_GET");
  ready();
  wait_moved();
  check(prctl(pr_sched_core, get, 0, scope_thread, &now) == 0 && now != 0,
        "the cookie is gone: errno %d", errno);
  return ok();
}
