// shm_open: one object mapped, one closed and opened by name afterwards.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t bytes = 1 * MiB;
  std::string suffix = std::to_string(now_ns(CLOCK_REALTIME));
  std::string mapped_name = "/tracee-m" + suffix, closed_name = "/tracee-c" + suffix;
  int fd = shm_open(mapped_name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  need(fd >= 0 && ftruncate(fd, bytes) == 0, "shm_open");
  uint8_t* p = map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  close(fd);
  fill(p, bytes, 21);
  fd = shm_open(closed_name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  need(fd >= 0 && write(fd, "closed", 6) == 6, "second shm_open");
  close(fd);
  ready();
  wait_moved();
  check_filled("mapped object", p, bytes, 21);
  fd = shm_open(mapped_name.c_str(), O_RDWR, 0);
  if (check(fd >= 0, "%s can't be opened: errno %d", mapped_name.c_str(), errno)) {
    uint8_t* again = map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    p[100] = 'n';
    same("store seen through a second mapping by name", 'n', again[100]);
  }
  fd = shm_open(closed_name.c_str(), O_RDWR, 0);
  char text[7] = {};
  if (check(fd >= 0, "%s can't be opened: errno %d", closed_name.c_str(), errno))
    check(read(fd, text, 6) == 6 && strcmp(text, "closed") == 0, "the closed object reads \"%s\"",
          text);
  shm_unlink(mapped_name.c_str());
  shm_unlink(closed_name.c_str());
  return ok();
}
