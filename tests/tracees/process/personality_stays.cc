// ADDR_NO_RANDOMIZE and READ_IMPLIES_EXEC.
#include <sys/personality.h>

#include "tracee.h"
using namespace tracee;

int main() {
  unsigned long wanted = ADDR_NO_RANDOMIZE | READ_IMPLIES_EXEC;
  need(personality(wanted) >= 0, "personality");
  ready();
  wait_moved();
  same("personality", wanted, static_cast<unsigned long>(personality(0xffffffff)));
  uint8_t* p = map(page_size, PROT_READ);
  check(has_vm_flag(p, "ex"), "READ_IMPLIES_EXEC has no effect");
  return ok();
}
