// A lock of flock(2): another open file of the same process can't have it.
#include <sys/file.h>

#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  write_file(scratch.path("lock"), "x");
  std::string path = scratch.dir() + "/lock";
  int a = open(path.c_str(), O_RDWR), b = open(path.c_str(), O_RDWR);
  need(a >= 0 && b >= 0 && flock(a, LOCK_EX) == 0, "flock");
  ready();
  wait_moved();
  check(flock(b, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the lock is lost");
  check(flock(a, LOCK_UN) == 0 && flock(b, LOCK_EX | LOCK_NB) == 0,
        "the lock can't be passed on: errno %d", errno);
  return ok();
}
