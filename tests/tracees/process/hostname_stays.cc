// uname and the domain name.
#include <sys/utsname.h>

#include "tracee.h"
using namespace tracee;

int main() {
  utsname before = {}, now = {};
  need(uname(&before) == 0, "uname");
  ready();
  while (!moved()) {
    need(uname(&now) == 0, "uname");
    if (!same("hostname", before.nodename, now.nodename)) break;
    usleep(500);
  }
  wait_moved();
  check(uname(&now) == 0, "uname: errno %d", errno);
  same("hostname", before.nodename, now.nodename);
  same("domain name", before.domainname, now.domainname);
  return ok();
}
