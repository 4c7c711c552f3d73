// A private mapping without own pages shows what the file gets later; this holds across the move.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("data");
  std::string text(64 * KiB, 'a');
  write_file(path, text);
  int fd = open(path.c_str(), O_RDWR);
  need(fd >= 0, "open");
  uint8_t* p = map(text.size(), PROT_READ, MAP_PRIVATE, fd, nullptr);
  uint8_t* tail = map(2 * page_size, PROT_READ, MAP_PRIVATE, fd, nullptr, 8 * page_size);
  check_all("file", p, text.size(), 'a');
  ready();
  wait_moved();
  check_all("file after the move", p, text.size(), 'a');
  check_all("part with an offset", tail, 2 * page_size, 'a');
  check(pwrite(fd, "bbbb", 4, 8 * page_size) == 4, "pwrite: errno %d", errno);
  same("byte written later", 'b', p[8 * page_size]);
  same("the same byte in the second mapping", 'b', tail[0]);
  check(read_file("/proc/self/maps").find(path) != std::string::npos, "maps doesn't name %s",
        path.c_str());
  return ok();
}
