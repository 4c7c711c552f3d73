// An io_uring with its rings mapped.
#include <linux/io_uring.h>

#include "tracee.h"
using namespace tracee;

int main() {
  io_uring_params parameters = {};
  int fd = static_cast<int>(syscall(SYS_io_uring_setup, 8, &parameters));
  if (fd < 0) skip("no io_uring: errno %d", errno);
  uint8_t* ring = map(parameters.sq_off.array + parameters.sq_entries * 4, PROT_READ | PROT_WRITE,
                      MAP_SHARED, fd, nullptr, IORING_OFF_SQ_RING);
  ready();
  wait_moved();
  same("entries", parameters.sq_entries,
       *reinterpret_cast<uint32_t*>(ring + parameters.sq_off.ring_entries));
  same("io_uring_enter", 0, syscall(SYS_io_uring_enter, fd, 0, 0, 0, nullptr, 0));
  return ok();
}
