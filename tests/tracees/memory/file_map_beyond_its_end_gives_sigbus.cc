// A mapping longer than its file: data up to the end, SIGBUS beyond, and both follow ftruncate.
#include <setjmp.h>

#include "tracee.h"
using namespace tracee;

sigjmp_buf back;

bool gives_sigbus(volatile uint8_t* p) {
  if (sigsetjmp(back, 1) != 0) return true;
  (void)*p;
  return false;
}

int main() {
  Scratch scratch;
  std::string path = scratch.path("short");
  write_file(path, std::string(2 * page_size, 's'));
  int fd = open(path.c_str(), O_RDWR);
  need(fd >= 0, "open");
  uint8_t* p = map(4 * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  signal(SIGBUS, [](int) { siglongjmp(back, 1); });
  need(gives_sigbus(p + 3 * page_size), "no SIGBUS before the move");
  ready();
  wait_moved();
  check_all("data", p, 2 * page_size, 's');
  check(gives_sigbus(p + 2 * page_size), "no SIGBUS beyond the end");
  check(ftruncate(fd, 4 * page_size) == 0, "ftruncate: errno %d", errno);
  check(!gives_sigbus(p + 3 * page_size), "SIGBUS in what was appended");
  return ok();
}
