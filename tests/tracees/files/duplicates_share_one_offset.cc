// dup'ed descriptors are one open file with one offset; a second open of the same file is another.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("data");
  write_file(path, std::string(10'000, 'd'));
  int a = open(path.c_str(), O_RDWR), b = dup(a), c = fcntl(a, F_DUPFD_CLOEXEC, 40),
      other = open(path.c_str(), O_RDWR);
  need(a >= 0 && b >= 0 && c >= 40 && other >= 0, "open, dup");
  lseek(a, 1000, SEEK_SET);
  lseek(other, 2000, SEEK_SET);
  ready();
  wait_moved();
  same("offset of the duplicate", 1000, lseek(b, 0, SEEK_CUR));
  lseek(c, 1234, SEEK_SET);
  same("offset after lseek of a duplicate", 1234, lseek(a, 0, SEEK_CUR));
  same("offset of the other open", 2000, lseek(other, 0, SEEK_CUR));
  check(fcntl(a, F_SETFL, O_APPEND) == 0, "F_SETFL: errno %d", errno);
  check((fcntl(b, F_GETFL) & O_APPEND) != 0, "duplicates have flags of their own");
  check((fcntl(other, F_GETFL) & O_APPEND) == 0, "the other open shares the flags");
  same("F_GETFD of the duplicate", 0, fcntl(b, F_GETFD));
  same("F_GETFD of the close-on-exec duplicate", FD_CLOEXEC, fcntl(c, F_GETFD));
  return ok();
}
