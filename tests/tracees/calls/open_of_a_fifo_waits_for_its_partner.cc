// Blocked in open(2) of a FIFO of the private /tmp until somebody opens its other end.
#include "calls.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("fifo");
  need(mkfifo(path.c_str(), 0600) == 0, "mkfifo");
  std::atomic<int> reader{-1};
  BlockedCall opening("openat", SYS_openat, [&]() -> long {
    reader = static_cast<int>(syscall(SYS_openat, AT_FDCWD, path.c_str(), O_RDONLY | O_CLOEXEC));
    return reader < 0 ? -errno : 0;
  });
  ready();
  wait_moved();
  opening.check_still_blocked();
  int writer = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  check(writer >= 0, "open for writing: errno %d", errno);
  opening.check_returns(0);
  char c = 0;
  check(write(writer, "x", 1) == 1 && read(reader, &c, 1) == 1 && c == 'x',
        "the two ends aren't connected: errno %d", errno);
  return ok();
}
