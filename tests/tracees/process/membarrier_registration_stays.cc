// membarrier's private expedited commands give EPERM unless registered.
#include <linux/membarrier.h>

#include "tracee.h"
using namespace tracee;

int main() {
  auto membarrier = [](int command) { return syscall(SYS_membarrier, command, 0, 0); };
  if (membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) != 0)
    skip("no membarrier: errno %d", errno);
  need(membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) == 0, "global");
  bool core = membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE) == 0;
  ready();
  while (!moved()) {
    if (!check(membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0, "private expedited: errno %d",
               errno))
      break;
    usleep(200);
  }
  wait_moved();
  check(membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0, "private expedited: errno %d", errno);
  if (core)
    check(membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE) == 0, "sync core: errno %d",
          errno);
  check(membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ) == -1 && errno == EPERM,
        "rseq is registered though nobody asked");
  return ok();
}
