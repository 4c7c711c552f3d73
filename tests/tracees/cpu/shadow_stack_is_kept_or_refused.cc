// A user shadow stack (CET), switched on by arch_prctl.
#include <asm/prctl.h>

#include "tracee.h"
using namespace tracee;

constexpr int arch_shstk_enable = 0x5001, arch_shstk_status = 0x5005, shstk = 1;

int main() {
  // Inline, and no return below us: returns to frames from before would fault.
  long result;
  asm volatile("syscall"
               : "=a"(result)
               : "0"(SYS_arch_prctl), "D"(arch_shstk_enable), "S"(shstk)
               : "rcx", "r11", "memory");
  if (result != 0) skip("no user shadow stacks: errno %ld", -result);
  ready();
  wait_moved();
  uint64_t features = 0;
  check(syscall(SYS_arch_prctl, arch_shstk_status, &features) == 0 && (features & shstk) != 0,
        "the shadow stack is off");
  exit(ok());
}
