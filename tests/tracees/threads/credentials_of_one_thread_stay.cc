// The kernel keeps credentials per thread; setfsuid and a raw setresuid change those of one only.
#include <sys/fsuid.h>

#include "tracee.h"
using namespace tracee;

int main() {
  if (geteuid() != 0) skip("needs root");
  std::atomic<int> phase{0};
  std::thread thread([&] {
    need(syscall(SYS_setresuid, -1, 1234, -1) == 0, "setresuid");
    phase = 1;
    while (phase == 1) usleep(1000);
    same("Uid", "0\t1234\t0\t1234", status_field("Uid"));
    same("CapEff", "0000000000000000", status_field("CapEff"));
  });
  need(eventually([&] { return phase == 1; }), "thread");
  ready();
  wait_moved();
  same("Uid of the main thread", "0\t0\t0\t0", status_field("Uid"));
  phase = 2;
  thread.join();
  return ok();
}
