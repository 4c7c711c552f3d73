// F_SETLEASE on a file.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  write_file(scratch.path("data"), "x");
  int fd = open((scratch.dir() + "/data").c_str(), O_RDONLY);
  if (fcntl(fd, F_SETLEASE, F_RDLCK) != 0) skip("no leases on this file system: errno %d", errno);
  ready();
  wait_moved();
  same("lease", F_RDLCK, fcntl(fd, F_GETLEASE));
  return ok();
}
