// Open files of /proc: of this process, and a directory.
#include "tracee.h"
using namespace tracee;

int main() {
  int status = open("/proc/self/status", O_RDONLY), proc = open("/proc", O_RDONLY | O_DIRECTORY);
  need(status >= 0 && proc >= 0, "open");
  std::string pid = status_field("Pid");
  ready();
  wait_moved();
  char text[4096] = {};
  check(pread(status, text, sizeof text - 1, 0) > 0, "pread: errno %d", errno);
  same("Pid", pid, proc_field(text, "Pid"));
  int self = openat(proc, "self/comm", O_RDONLY);
  check(self >= 0, "openat: errno %d", errno);
  return ok();
}
