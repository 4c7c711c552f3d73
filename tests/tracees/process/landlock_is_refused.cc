// A Landlock domain can't be read back from outside, nor given to another process.
#include <linux/landlock.h>

#include "tracee.h"
using namespace tracee;

int main() {
  landlock_ruleset_attr attributes = {};
  attributes.handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_SOCK;
  int fd =
      static_cast<int>(syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0));
  if (fd < 0) skip("no Landlock: errno %d", errno);
  need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           syscall(SYS_landlock_restrict_self, fd, 0) == 0,
       "landlock_restrict_self");
  close(fd);
  ready();
  wait_moved();
  Scratch scratch;
  check(mknod(scratch.path("socket").c_str(), S_IFSOCK | 0600, 0) == -1 && errno == EACCES,
        "the rule has no effect");
  return ok();
}
