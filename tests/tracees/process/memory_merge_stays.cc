// PR_SET_MEMORY_MERGE (6.4): KSM for the whole process.
#include "tracee.h"
using namespace tracee;

constexpr int pr_set_memory_merge = 67, pr_get_memory_merge = 68;

int main() {
  if (prctl(pr_set_memory_merge, 1UL, 0UL, 0UL, 0UL) != 0)
    skip("no PR_SET_MEMORY_MERGE: errno %d", errno);
  ready();
  wait_moved();
  same("memory merge", 1, prctl(pr_get_memory_merge, 0UL, 0UL, 0UL, 0UL));
  return ok();
}
