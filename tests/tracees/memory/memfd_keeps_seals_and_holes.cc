// Seals, size, offset, and a hole of 1 GiB that must not become memory.
#include "tracee.h"
using namespace tracee;

int main() {
  int fd = memfd_create("sealed", MFD_ALLOW_SEALING);
  need(fd >= 0, "memfd_create");
  need(ftruncate(fd, GiB) == 0 && pwrite(fd, "end", 3, GiB - 3) == 3 &&
           lseek(fd, 12345, SEEK_SET) == 12345,
       "set-up");
  need(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0, "F_ADD_SEALS");
  struct stat before, now;
  need(fstat(fd, &before) == 0, "fstat");
  ready();
  wait_moved();
  check(fstat(fd, &now) == 0, "fstat: errno %d", errno);
  same("size", before.st_size, now.st_size);
  check(now.st_blocks <= before.st_blocks + 16, "the hole became %ld blocks",
        static_cast<long>(now.st_blocks));
  same("offset", 12345, lseek(fd, 0, SEEK_CUR));
  same("seals", F_SEAL_SHRINK | F_SEAL_GROW, fcntl(fd, F_GET_SEALS));
  check(ftruncate(fd, 0) == -1 && errno == EPERM, "a sealed memfd could be cut");
  char end[3] = {};
  check(pread(fd, end, 3, GiB - 3) == 3 && memcmp(end, "end", 3) == 0, "its end is lost");
  check(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL) == 0, "no more seals can be added: errno %d", errno);
  return ok();
}
