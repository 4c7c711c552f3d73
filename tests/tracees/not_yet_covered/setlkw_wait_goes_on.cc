// A thread that waits in fcntl(F_OFD_SETLKW).
#include "calls.h"
using namespace tracee;

int main() {
  Scratch scratch;
  write_file(scratch.path("lock"), "x");
  std::string path = scratch.dir() + "/lock";
  int a = open(path.c_str(), O_RDWR), b = open(path.c_str(), O_RDWR);
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  need(a >= 0 && b >= 0 && fcntl(a, F_OFD_SETLK, &lock) == 0, "fcntl");
  BlockedCall waiting("fcntl", SYS_fcntl, [b]() -> long {
    struct flock wanted = {};
    wanted.l_type = F_WRLCK;
    return sys_result(fcntl(b, F_OFD_SETLKW, &wanted));
  });
  ready();
  wait_moved();
  waiting.check_still_blocked();
  lock.l_type = F_UNLCK;
  check(fcntl(a, F_OFD_SETLK, &lock) == 0, "fcntl: errno %d", errno);
  waiting.check_returns(0);
  return ok();
}
