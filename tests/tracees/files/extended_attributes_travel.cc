// user.* attributes of files and directories of the private /tmp.
#include <sys/xattr.h>

#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string file = scratch.path("file"), dir = scratch.path("dir");
  write_file(file, "x");
  need(mkdir(dir.c_str(), 0700) == 0, "mkdir");
  std::string long_value(1000, 'v');
  if (setxattr(file.c_str(), "user.first", "one", 3, 0) != 0)
    skip("no user attributes in /tmp: errno %d", errno);
  need(setxattr(file.c_str(), "user.empty", "", 0, 0) == 0 &&
           setxattr(dir.c_str(), "user.long", long_value.data(), long_value.size(), 0) == 0,
       "setxattr");
  ready();
  wait_moved();
  char value[2000] = {};
  same("bytes of user.first", 3, getxattr(file.c_str(), "user.first", value, sizeof value));
  same("user.first", "one", std::string(value, 3));
  same("bytes of user.empty", 0, getxattr(file.c_str(), "user.empty", value, sizeof value));
  same("bytes of user.long", static_cast<long>(long_value.size()),
       getxattr(dir.c_str(), "user.long", value, sizeof value));
  same("user.long", long_value, std::string(value, long_value.size()));
  return ok();
}
