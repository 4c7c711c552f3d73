// A move reads files: that must not show in the times and sizes of files open read-only, nor update
// contents.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("data");
  write_file(path, "content");
  timespec times[2] = {{1'000'000'000, 0}, {1'000'000'001, 0}};
  need(utimensat(AT_FDCWD, path.c_str(), times, 0) == 0, "utimensat");
  int fd = open(path.c_str(), O_RDWR);
  uint8_t* p = map(page_size, PROT_READ, MAP_PRIVATE, fd);
  need(fd >= 0 && p != nullptr, "open");
  ready();
  wait_moved();
  struct stat st = {};
  check(fstat(fd, &st) == 0, "fstat: errno %d", errno);
  same("time of last change", 1'000'000'001, st.st_mtim.tv_sec);
  same("size", 7, st.st_size);
  same("content", "content", read_file(path));
  return ok();
}
