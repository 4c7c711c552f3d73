// PR_SET_PDEATHSIG: kept, and not sent by the moves, though the parent on the source ends.
#include "tracee.h"
using namespace tracee;

std::atomic<int> received{0};

int main() {
  signal(SIGUSR2, [](int) { ++received; });
  need(prctl(PR_SET_PDEATHSIG, SIGUSR2) == 0, "PR_SET_PDEATHSIG");
  ready();
  wait_moved();
  int now = 0;
  check(prctl(PR_GET_PDEATHSIG, &now) == 0, "PR_GET_PDEATHSIG: errno %d", errno);
  same("parent death signal", SIGUSR2, now);
  same("signals received", 0, received.load());
  return ok();
}
