// Every resource limit that an ordinary user can lower, soft and hard.
#include <sys/resource.h>

#include "tracee.h"
using namespace tracee;

int main() {
  rlimit before[RLIM_NLIMITS] = {};
  for (unsigned r = 0; r < RLIM_NLIMITS; ++r) {
    need(getrlimit(static_cast<__rlimit_resource>(r), &before[r]) == 0, "getrlimit(%u)", r);
    rlimit wanted = before[r];
    auto lower = [](rlim_t limit, rlim_t by) {
      return limit == RLIM_INFINITY ? (1ULL << 45) - by : limit > 2 * by ? limit - by : limit;
    };
    if (r != RLIMIT_STACK) wanted.rlim_max = lower(wanted.rlim_max, 4096 + r);
    wanted.rlim_cur = lower(std::min(wanted.rlim_cur, wanted.rlim_max), 100 + r);
    if (setrlimit(static_cast<__rlimit_resource>(r), &wanted) == 0) before[r] = wanted;
  }
  ready();
  wait_moved();
  for (unsigned r = 0; r < RLIM_NLIMITS; ++r) {
    rlimit now = {};
    check(getrlimit(static_cast<__rlimit_resource>(r), &now) == 0, "getrlimit(%u): errno %d", r,
          errno);
    check(now.rlim_cur == before[r].rlim_cur && now.rlim_max == before[r].rlim_max,
          "limit %u is %lu/%lu, was %lu/%lu", r, now.rlim_cur, now.rlim_max, before[r].rlim_cur,
          before[r].rlim_max);
  }
  return ok();
}
