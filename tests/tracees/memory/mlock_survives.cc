// mlock and mlock2(MLOCK_ONFAULT): the flags and the amount.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t bytes = 256 * KiB;
  uint8_t* locked = map(bytes);
  uint8_t* on_fault = map(bytes);
  fill(locked, bytes, 1);
  need(mlock(locked, bytes) == 0, "mlock");
  need(syscall(SYS_mlock2, on_fault, bytes, MLOCK_ONFAULT) == 0, "mlock2");
  std::string amount = status_field("VmLck");
  ready();
  wait_moved();
  check_filled("locked", locked, bytes, 1);
  check(has_vm_flag(locked, "lo"), "mlock is forgotten");
  check(has_vm_flag(on_fault, "lo"), "mlock2 is forgotten");
  same("VmLck", amount, status_field("VmLck"));
  same("resident part of the area locked at a fault", 0L, smaps_kb(on_fault, "Rss"));
  check(munlock(locked, bytes) == 0 && munmap(on_fault, bytes) == 0, "munlock: errno %d", errno);
  return ok();
}
