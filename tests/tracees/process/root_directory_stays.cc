// chroot, with the current directory inside.
#include "tracee.h"
using namespace tracee;

int main() {
  if (geteuid() != 0) skip("needs root");
  Scratch scratch;
  write_file(scratch.path("marker"), "inside");
  need(chroot(scratch.dir().c_str()) == 0 && chdir("/") == 0, "chroot");
  ready();
  wait_moved();
  same("file in the new root", "inside", read_file("/marker"));
  check(access("/proc/self", F_OK) == -1, "the old root is visible");
  need(unlink("/marker") == 0, "unlink");
  return ok();
}
