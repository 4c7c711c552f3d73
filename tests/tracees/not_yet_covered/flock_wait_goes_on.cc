// A thread that waits in flock(2) for what another open file holds.
#include <sys/file.h>

#include "calls.h"
using namespace tracee;

int main() {
  Scratch scratch;
  write_file(scratch.path("lock"), "x");
  std::string path = scratch.dir() + "/lock";
  int a = open(path.c_str(), O_RDWR), b = open(path.c_str(), O_RDWR);
  need(a >= 0 && b >= 0 && flock(a, LOCK_EX) == 0, "flock");
  BlockedCall waiting("flock", SYS_flock, [b]() -> long { return sys_result(flock(b, LOCK_EX)); });
  ready();
  wait_moved();
  waiting.check_still_blocked();
  check(flock(a, LOCK_UN) == 0, "flock: errno %d", errno);
  waiting.check_returns(0);
  return ok();
}
