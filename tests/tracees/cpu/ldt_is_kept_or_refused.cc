// An entry of modify_ldt(2), as Wine makes them.
#include <asm/ldt.h>

#include "tracee.h"
using namespace tracee;

int main() {
  static uint32_t data[16] = {0xabcd};
  user_desc entry = {};
  entry.entry_number = 3;
  entry.base_addr = 0x10000;
  entry.limit = 0xfffff;
  entry.seg_32bit = 1;
  entry.limit_in_pages = 1;
  entry.useable = 1;
  if (syscall(SYS_modify_ldt, 1, &entry, sizeof entry) != 0) skip("no modify_ldt: errno %d", errno);
  uint64_t before[8192 / 8] = {}, now[8192 / 8] = {};
  long bytes = syscall(SYS_modify_ldt, 0, before, sizeof before);
  ready();
  wait_moved();
  same("bytes of LDT", bytes, syscall(SYS_modify_ldt, 0, now, sizeof now));
  check(memcmp(before, now, sizeof now) == 0, "the LDT changed");
  same("data", 0xabcdu, data[0]);
  return ok();
}
