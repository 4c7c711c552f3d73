// set_mempolicy of the process and mbind of one area.
#include <linux/mempolicy.h>

#include "tracee.h"
using namespace tracee;

int main() {
  unsigned long nodes = 1;
  if (syscall(SYS_set_mempolicy, MPOL_INTERLEAVE, &nodes, 64) != 0)
    skip("no memory policies: errno %d", errno);
  uint8_t* p = map(16 * page_size);
  need(syscall(SYS_mbind, p, 16 * page_size, MPOL_BIND, &nodes, 64, 0) == 0, "mbind");
  p[0] = 1;
  ready();
  wait_moved();
  int mode = -1;
  unsigned long now[16] = {};
  check(syscall(SYS_get_mempolicy, &mode, now, 1024, nullptr, 0) == 0, "get_mempolicy: errno %d",
        errno);
  same("policy of the process", MPOL_INTERLEAVE, mode);
  same("its nodes", nodes, now[0]);
  check(syscall(SYS_get_mempolicy, &mode, now, 1024, p, MPOL_F_ADDR) == 0,
        "get_mempolicy: errno %d", errno);
  same("policy of the area", MPOL_BIND, mode);
  return ok();
}
