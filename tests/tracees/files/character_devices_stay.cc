// /dev/null, zero, full, random and urandom.
#include <sys/sysmacros.h>

#include "tracee.h"
using namespace tracee;

int main() {
  const char* paths[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"};
  int fds[5];
  dev_t devices[5];
  for (int i = 0; i < 5; ++i) {
    fds[i] = open(paths[i], O_RDWR);
    if (fds[i] < 0) fds[i] = open(paths[i], O_RDONLY);
    struct stat st = {};
    need(fds[i] >= 0 && fstat(fds[i], &st) == 0, "open(%s)", paths[i]);
    devices[i] = st.st_rdev;
  }
  ready();
  wait_moved();
  for (int i = 0; i < 5; ++i) {
    struct stat st = {};
    check(fstat(fds[i], &st) == 0 && S_ISCHR(st.st_mode), "%s isn't a device", paths[i]);
    same(paths[i], devices[i], st.st_rdev);
  }
  uint64_t words[4] = {1, 1, 0, 0};
  same("read of /dev/null", 0, read(fds[0], words, 8));
  same("write to /dev/null", 8, write(fds[0], words, 8));
  check(read(fds[1], words, 16) == 16 && words[0] == 0 && words[1] == 0, "/dev/zero gives 0x%lx",
        words[0]);
  check(write(fds[2], words, 8) == -1 && errno == ENOSPC, "/dev/full takes data");
  check(read(fds[4], words + 2, 16) == 16 && words[2] != words[3], "/dev/urandom gives 0x%lx twice",
        words[2]);
  return ok();
}
