// Real, effective, saved and file-system ids that all differ, and supplementary groups.
#include <grp.h>
#include <sys/fsuid.h>

#include "tracee.h"
using namespace tracee;

int main() {
  if (geteuid() != 0) skip("needs root");
  gid_t groups[] = {5, 20, 4242, 70000};
  need(setgroups(4, groups) == 0, "setgroups");
  need(setresgid(1001, 1002, 1003) == 0 && setresuid(2001, 0, 2003) == 0, "setresuid");
  setfsgid(1004);
  setfsuid(2004);
  std::string uid = status_field("Uid"), gid = status_field("Gid");
  same("Uid in the beginning", "2001\t0\t2003\t2004", uid);
  ready();
  wait_moved();
  same("Uid", uid, status_field("Uid"));
  same("Gid", gid, status_field("Gid"));
  same("Groups", "5 20 4242 70000", status_field("Groups"));
  uid_t r, e, s;
  check(getresuid(&r, &e, &s) == 0 && r == 2001 && e == 0 && s == 2003, "getresuid: %u %u %u", r, e,
        s);
  return ok();
}
