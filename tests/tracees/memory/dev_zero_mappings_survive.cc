// Private and shared mappings of /dev/zero: anonymous memory by another name.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t bytes = 256 * KiB;
  int fd = open("/dev/zero", O_RDWR);
  need(fd >= 0, "open(/dev/zero)");
  uint8_t* own = map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  uint8_t* shared = map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  fill(own, bytes / 2, 1);
  fill(shared, bytes / 2, 2);
  ready();
  wait_moved();
  check_filled("private", own, bytes / 2, 1);
  check_filled("shared", shared, bytes / 2, 2);
  check_all("rest, private", own + bytes / 2, bytes / 2, 0);
  check_all("rest, shared", shared + bytes / 2, bytes / 2, 0);
  pid_t child = fork();  // Still shared?
  if (child == 0) {
    shared[bytes - 1] = 'c';
    _exit(0);
  }
  check(waitpid(child, nullptr, 0) == child, "waitpid: errno %d", errno);
  same("the child's store", 'c', shared[bytes - 1]);
  return ok();
}
