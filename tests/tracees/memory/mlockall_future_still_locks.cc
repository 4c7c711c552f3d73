// mlockall(MCL_FUTURE): what is mapped after the move is locked too.
#include "tracee.h"
using namespace tracee;

int main() {
  need(mlockall(MCL_FUTURE) == 0, "mlockall");
  constexpr size_t bytes = 64 * KiB;
  uint8_t* before = map(bytes);
  need(has_vm_flag(before, "lo"), "no lock before the move");
  ready();
  wait_moved();
  check(has_vm_flag(before, "lo"), "the area mapped before isn't locked");
  uint8_t* after = map(bytes);
  check(has_vm_flag(after, "lo"), "the area mapped after the move isn't locked");
  same("resident part, KiB", smaps_kb(after, "Size"), smaps_kb(after, "Rss"));
  check(munlockall() == 0, "munlockall: errno %d", errno);
  uint8_t* unlocked = map(bytes);
  check(!has_vm_flag(unlocked, "lo"), "munlockall doesn't hold");
  return ok();
}
