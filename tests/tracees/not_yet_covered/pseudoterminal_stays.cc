// A pseudoterminal that the program has opened itself, both ends.
#include <termios.h>

#include "tracee.h"
using namespace tracee;

int main() {
  int master = posix_openpt(O_RDWR | O_NOCTTY);
  if (master < 0) skip("no /dev/ptmx: errno %d", errno);
  need(grantpt(master) == 0 && unlockpt(master) == 0, "grantpt");
  int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
  need(slave >= 0, "open of the other end");
  need(write(slave, "out", 3) == 3, "write");
  ready();
  wait_moved();
  char text[4] = {};
  check(read(master, text, 3) == 3, "read: errno %d", errno);
  same("output", "out", text);
  return ok();
}
