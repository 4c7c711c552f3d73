// prctl(PR_SET_TSC, PR_TSC_SIGSEGV): rdtsc faults, in this thread only.
#include <setjmp.h>
#include <x86intrin.h>

#include "tracee.h"
using namespace tracee;

sigjmp_buf back;

int main() {
  std::thread thread;
  std::atomic<int> phase{0};
  signal(SIGSEGV, [](int) { siglongjmp(back, 1); });
  need(prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == 0, "PR_SET_TSC");
  if (sigsetjmp(back, 1) == 0) {
    (void)__rdtsc();
    skip("this machine, a virtual one, never lets rdtsc fault");
  }
  need(prctl(PR_SET_TSC, PR_TSC_ENABLE) == 0, "PR_SET_TSC");
  thread = std::thread([&] {
    need(prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == 0, "PR_SET_TSC");
    phase = 1;
    while (phase == 1)
      syscall(SYS_futex, &phase, 0 /* FUTEX_WAIT */, 1, nullptr, nullptr,
              0);  // No vdso: it reads the TSC.
    int mode = 0;
    check(prctl(PR_GET_TSC, &mode) == 0, "PR_GET_TSC: errno %d", errno);
    same("PR_GET_TSC", PR_TSC_SIGSEGV, mode);
    if (sigsetjmp(back, 1) == 0) {
      (void)__rdtsc();
      check(false, "rdtsc didn't fault");
    }
    prctl(PR_SET_TSC, PR_TSC_ENABLE);
  });
  need(eventually([&] { return phase == 1; }), "thread");
  ready();
  wait_moved();
  int mode = 0;
  check(prctl(PR_GET_TSC, &mode) == 0 && mode == PR_TSC_ENABLE, "the main thread's TSC traps too");
  phase = 2;
  syscall(SYS_futex, &phase, 1 /* FUTEX_WAKE */, 1, nullptr, nullptr, 0);
  thread.join();
  return ok();
}
