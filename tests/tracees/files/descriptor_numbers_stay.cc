// High numbers, gaps, close-on-exec, and a limit lowered below what is open.
#include <sys/resource.h>

#include "tracee.h"
using namespace tracee;

int main() {
  rlimit limit = {};
  need(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
  int high = static_cast<int>(std::min<rlim_t>(limit.rlim_cur, 100'000)) - 1;
  int fd = open("/dev/null", O_RDWR);
  std::vector<int> numbers = {10, 63, 64, 200, high};
  for (int n : numbers) need(dup3(fd, n, n % 2 == 0 ? O_CLOEXEC : 0) == n, "dup3(%d)", n);
  rlimit low = {32, limit.rlim_max};
  need(setrlimit(RLIMIT_NOFILE, &low) == 0, "setrlimit");
  std::string size = status_field("FDSize");
  ready();
  wait_moved();
  for (int n : numbers) same("F_GETFD", n % 2 == 0 ? FD_CLOEXEC : 0, fcntl(n, F_GETFD));
  for (int n : {11, 62, 65, 199, high - 1})
    check(fcntl(n, F_GETFD) == -1 && errno == EBADF, "descriptor %d appeared", n);
  same("next free number", fd + 1, dup(fd));
  struct rlimit now = {};
  check(getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_cur == 32, "the limit is %lu",
        now.rlim_cur);
  return ok();
}
