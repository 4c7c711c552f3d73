// A file of 4 GiB with two blocks of data, open and closed: holes stay holes.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  constexpr off_t size = 4 * static_cast<off_t>(GiB);
  std::string names[] = {scratch.path("open"), scratch.path("closed")};
  int open_fd = -1;
  for (std::string& name : names) {
    int fd = open(name.c_str(), O_RDWR | O_CREAT, 0600);
    need(fd >= 0 && ftruncate(fd, size) == 0 && pwrite(fd, "middle", 6, size / 2) == 6, "set-up");
    if (name == names[0])
      open_fd = fd;
    else
      close(fd);
  }
  need(unlink(names[0].c_str()) == 0, "unlink");
  ready();
  wait_moved();
  int again = open(names[1].c_str(), O_RDWR);
  for (int fd : {open_fd, again}) {
    struct stat st = {};
    char text[7] = {};
    if (!check(fstat(fd, &st) == 0, "fstat: errno %d", errno)) continue;
    same("size", size, st.st_size);
    check(st.st_blocks <= 256, "%ld blocks are used", static_cast<long>(st.st_blocks));
    check(pread(fd, text, 6, size / 2) == 6 && strcmp(text, "middle") == 0, "the data is lost");
  }
  return ok();
}
