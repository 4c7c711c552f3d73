// F_SETOWN, F_SETOWN_EX to a thread, and F_SETSIG.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  write_file(scratch.path("data"), "x");
  std::string path = scratch.dir() + "/data";
  int a = open(path.c_str(), O_RDWR), b = open(path.c_str(), O_RDWR),
      c = open(path.c_str(), O_RDWR);
  need(fcntl(a, F_SETOWN, getpid()) == 0 && fcntl(a, F_SETSIG, SIGRTMIN + 3) == 0, "F_SETOWN");
  f_owner_ex thread = {F_OWNER_TID, gettid_now()};
  need(fcntl(b, F_SETOWN_EX, &thread) == 0, "F_SETOWN_EX");
  ready();
  wait_moved();
  same("F_GETOWN", getpid(), fcntl(a, F_GETOWN));
  same("F_GETSIG", SIGRTMIN + 3, fcntl(a, F_GETSIG));
  f_owner_ex now = {};
  check(fcntl(b, F_GETOWN_EX, &now) == 0, "F_GETOWN_EX: errno %d", errno);
  same("kind of owner", F_OWNER_TID, now.type);
  same("owner", gettid_now(), now.pid);
  same("owner of the third", 0, fcntl(c, F_GETOWN));
  return ok();
}
