// Data under PROT_NONE and under PROT_READ, in private, shared and file-backed areas.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t bytes = 1 * MiB;
  int fd = memfd_create("none", 0);
  need(fd >= 0 && ftruncate(fd, bytes) == 0, "memfd");
  uint8_t* areas[] = {map(bytes), map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS),
                      map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd),
                      map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd)};
  const int protections[] = {PROT_NONE, PROT_READ, PROT_WRITE, PROT_NONE};
  fill(areas[3], bytes, 3);
  for (int i = 0; i < 3; ++i) fill(areas[i], bytes, i);
  for (int i = 0; i < 4; ++i) need(mprotect(areas[i], bytes, protections[i]) == 0, "mprotect");
  ready();
  wait_moved();
  for (int i = 0; i < 4; ++i) {
    same("readable", (protections[i] & PROT_READ) != 0, has_vm_flag(areas[i], "rd"));
    same("writable", (protections[i] & PROT_WRITE) != 0, has_vm_flag(areas[i], "wr"));
    check(mprotect(areas[i], bytes, PROT_READ | PROT_WRITE) == 0, "mprotect of area %d: errno %d",
          i, errno);
    check_filled("data", areas[i], bytes, i);
    areas[i][0] ^= 1;  // Can be written again.
  }
  return ok();
}
