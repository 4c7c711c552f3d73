// /proc/self/coredump_filter.
#include "tracee.h"
using namespace tracee;

int main() {
  write_file("/proc/self/coredump_filter", "0x15");
  ready();
  wait_moved();
  same("coredump_filter", "00000015\n", read_file("/proc/self/coredump_filter"));
  return ok();
}
