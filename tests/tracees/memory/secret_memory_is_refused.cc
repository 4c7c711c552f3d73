// memfd_secret: not even the kernel maps it; nobody outside can read it.
#include "tracee.h"
using namespace tracee;

int main() {
  int fd = static_cast<int>(syscall(SYS_memfd_secret, 0));
  if (fd < 0) skip("no memfd_secret: errno %d", errno);
  need(ftruncate(fd, page_size) == 0, "ftruncate");
  uint8_t* p = map(page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  fill(p, page_size, 1);
  ready();
  wait_moved();
  check_filled("secret", p, page_size, 1);
  return ok();
}
