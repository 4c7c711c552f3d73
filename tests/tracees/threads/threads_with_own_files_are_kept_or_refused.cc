// A thread that left the common descriptor table and working directory by unshare(CLONE_FILES |
// CLONE_FS).
#include <sched.h>

#include "tracee.h"
using namespace tracee;

int main() {
  std::atomic<int> phase{0};
  std::thread thread([&] {
    need(unshare(CLONE_FILES | CLONE_FS) == 0, "unshare");
    need(dup2(1, 50) == 50 && chdir("/proc") == 0, "dup2, chdir");
    phase = 1;
    while (phase == 1) usleep(1000);
    check(fcntl(50, F_GETFD) >= 0, "the thread's own descriptor is gone");
    char cwd[64] = {};
    check(getcwd(cwd, sizeof cwd) != nullptr, "getcwd: errno %d", errno);
    same("the thread's directory", "/proc", cwd);
  });
  need(eventually([&] { return phase == 1; }), "thread");
  ready();
  wait_moved();
  check(fcntl(50, F_GETFD) == -1, "the main thread has the other's descriptor");
  phase = 2;
  thread.join();
  return ok();
}
