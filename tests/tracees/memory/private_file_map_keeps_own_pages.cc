// Pages written through MAP_PRIVATE are ours alone, the others are the file's.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("data");
  constexpr size_t pages = 256;
  write_file(path, std::string(pages * page_size, 'f'));
  int fd = open(path.c_str(), O_RDWR);
  need(fd >= 0, "open");
  uint8_t* p = map(pages * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  close(fd);
  for (size_t i = 0; i < pages; i += 3) memset(p + i * page_size, 'm', page_size);
  size_t late = 1;  // Pages 1, 4, 7...: written while we are moved.
  ready();
  while (!moved()) {
    if (late < pages) memset(p + late * page_size, 'l', page_size), late += 3;
    usleep(2000);
  }
  for (size_t i = 0; i < pages; ++i) {
    uint8_t expected = i % 3 == 0 ? 'm' : i % 3 == 1 && i < late ? 'l' : 'f';
    if (!check_all("page", p + i * page_size, page_size, expected))
      say("FAIL: that was page %zu", i);
  }
  std::string file = read_file(path);
  check(file == std::string(pages * page_size, 'f'), "the file itself changed");
  return ok();
}
