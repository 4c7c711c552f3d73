// umask, as the call and as new files show it.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  umask(0135);
  ready();
  wait_moved();
  same("Umask", "0135", status_field("Umask"));
  std::string path = scratch.path("new");
  int fd = open(path.c_str(), O_CREAT | O_WRONLY, 0777);
  struct stat st = {};
  check(fd >= 0 && fstat(fd, &st) == 0, "open: errno %d", errno);
  same("mode of a new file", 0642, st.st_mode & 0777);
  same("umask", 0135, umask(0));
  return ok();
}
