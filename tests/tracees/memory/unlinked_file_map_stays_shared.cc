// Two shared mappings of a file without a name: one memory, seen through both and through the
// descriptor.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("gone");
  constexpr size_t bytes = 256 * KiB;
  write_file(path, std::string(bytes, 'u'));
  int fd = open(path.c_str(), O_RDWR);
  need(fd >= 0 && unlink(path.c_str()) == 0, "open, unlink");
  uint8_t* a = map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  uint8_t* b = map(bytes, PROT_READ, MAP_SHARED, fd);
  fill(a, bytes / 2, 5);
  ready();
  wait_moved();
  check_filled("first view", a, bytes / 2, 5);
  check_filled("second view", b, bytes / 2, 5);
  check_all("rest", b + bytes / 2, bytes / 2, 'u');
  a[bytes - 1] = 'x';
  same("store through the first seen in the second", 'x', b[bytes - 1]);
  char c = 0;
  check(pread(fd, &c, 1, bytes - 1) == 1 && c == 'x', "store isn't seen by read");
  struct stat st;
  check(fstat(fd, &st) == 0 && st.st_nlink == 0, "the file has %lu names",
        static_cast<unsigned long>(st.st_nlink));
  return ok();
}
