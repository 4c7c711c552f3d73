// unshare(CLONE_NEWUTS | CLONE_NEWIPC): namespaces inside those of the capsule.
#include <sched.h>
#include <sys/utsname.h>

#include "tracee.h"
using namespace tracee;

int main() {
  if (geteuid() != 0) skip("needs root");
  need(unshare(CLONE_NEWUTS | CLONE_NEWIPC) == 0 && sethostname("inner", 5) == 0, "unshare");
  ready();
  wait_moved();
  utsname now = {};
  check(uname(&now) == 0, "uname: errno %d", errno);
  same("hostname", "inner", now.nodename);
  return ok();
}
