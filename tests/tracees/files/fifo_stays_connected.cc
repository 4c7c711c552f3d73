// A named FIFO, open for reading and writing.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("fifo");
  need(mkfifo(path.c_str(), 0600) == 0, "mkfifo");
  int fd = open(path.c_str(), O_RDWR);
  need(fd >= 0 && write(fd, "fifo", 4) == 4, "open");
  ready();
  wait_moved();
  char text[5] = {};
  check(read(fd, text, 4) == 4, "read: errno %d", errno);
  same("content", "fifo", text);
  return ok();
}
