// Standard input and output are what they were: kind, flags, duplicates.
#include "tracee.h"
using namespace tracee;

int main() {
  struct stat before[3] = {}, now = {};
  int flags[3];
  for (int fd = 0; fd < 3; ++fd) {
    need(fstat(fd, &before[fd]) == 0, "fstat(%d)", fd);
    flags[fd] = fcntl(fd, F_GETFL);
  }
  int copy = fcntl(1, F_DUPFD_CLOEXEC, 20);
  ready();
  wait_moved();
  for (int fd = 0; fd < 3; ++fd) {
    check(fstat(fd, &now) == 0, "fstat(%d): errno %d", fd, errno);
    same("kind", before[fd].st_mode & S_IFMT, now.st_mode & S_IFMT);
    same("flags", flags[fd], fcntl(fd, F_GETFL));
  }
  struct stat original = {};
  check(fstat(1, &original) == 0 && fstat(copy, &now) == 0 && original.st_ino == now.st_ino,
        "the duplicate of stdout is another file");
  return ok();
}
