// inotify with a watch, and a thread that waits in read.
#include <sys/inotify.h>

#include "calls.h"
using namespace tracee;

int main() {
  Scratch scratch;
  int fd = inotify_init1(0);
  int watch = inotify_add_watch(fd, scratch.dir().c_str(), IN_CREATE);
  need(fd >= 0 && watch >= 0, "inotify");
  alignas(inotify_event) char buffer[512];
  BlockedCall waiting("read of inotify", SYS_read,
                      [&]() -> long { return read(fd, buffer, sizeof buffer) > 0 ? 1 : -errno; });
  ready();
  wait_moved();
  waiting.check_still_blocked();
  write_file(scratch.path("new"), "");
  waiting.check_returns(1);
  auto* event = reinterpret_cast<inotify_event*>(buffer);
  same("watch", watch, event->wd);
  same("name", "new", event->name);
  return ok();
}
