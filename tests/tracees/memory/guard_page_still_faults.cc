// A PROT_NONE page between two areas gives SIGSEGV with the right address and code.
#include <setjmp.h>

#include "tracee.h"
using namespace tracee;

sigjmp_buf back;
void* volatile fault_address;
volatile int fault_code;

void on_fault(int, siginfo_t* info, void*) {
  fault_address = info->si_addr;
  fault_code = info->si_code;
  siglongjmp(back, 1);
}

void check_fault(uint8_t* p, int code) {
  fault_address = nullptr;
  if (sigsetjmp(back, 1) == 0) {
    *const_cast<volatile uint8_t*>(p) = 1;
    check(false, "no fault");
    return;
  }
  check(fault_address == p, "fault at %p, not at %p", fault_address, static_cast<void*>(p));
  same("si_code", code, static_cast<int>(fault_code));
}

int main() {
  uint8_t* p = map(8 * page_size);
  need(mprotect(p + 2 * page_size, page_size, PROT_NONE) == 0 &&
           munmap(p + 5 * page_size, page_size) == 0,
       "guards");
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  need(sigaction(SIGSEGV, &action, nullptr) == 0, "sigaction");
  ready();
  wait_moved();
  check_fault(p + 2 * page_size + 7, SEGV_ACCERR);
  check_fault(p + 5 * page_size + 9, SEGV_MAPERR);
  p[page_size * 2 - 1] = p[page_size * 3] = 1;
  return ok();
}
