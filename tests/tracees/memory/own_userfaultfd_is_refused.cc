// A program that handles its own page faults: its registration is where trackers want theirs.
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include "tracee.h"
using namespace tracee;

int main() {
  int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
  if (fd < 0) skip("no userfaultfd: errno %d", errno);
  uffdio_api api = {UFFD_API, 0, 0};
  need(ioctl(fd, UFFDIO_API, &api) == 0, "UFFDIO_API");
  uint8_t* p = map(4 * page_size);
  uffdio_register reg = {
      {reinterpret_cast<uintptr_t>(p), 4 * page_size}, UFFDIO_REGISTER_MODE_MISSING, 0};
  need(ioctl(fd, UFFDIO_REGISTER, &reg) == 0, "UFFDIO_REGISTER");
  ready();
  wait_moved();
  std::thread pager([&] {
    uffd_msg message;
    if (!check(read(fd, &message, sizeof message) == sizeof message, "read: errno %d", errno))
      _exit(1);
    uffdio_zeropage zero = {{reinterpret_cast<uintptr_t>(p), page_size}, 0, 0};
    check(ioctl(fd, UFFDIO_ZEROPAGE, &zero) == 0, "UFFDIO_ZEROPAGE: errno %d", errno);
  });
  same("page given by our own pager", 0, *const_cast<volatile uint8_t*>(p));
  pager.join();
  return ok();
}
