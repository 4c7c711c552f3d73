// The x87 control word (precision, rounding) and eight values on the register stack.
#include "tracee.h"
using namespace tracee;

std::atomic<uint32_t> stop_flag{0};

int main() {
  // Single precision, rounding down, all exceptions masked.
  uint16_t wanted = 0x047f, control = 0, status = 0;
  long double values[8] = {};
  std::thread thread([&] {
    asm volatile(
        "fninit\n fldcw %[wanted]\n"
        "fldpi\n fldl2e\n fldl2t\n fldlg2\n fldln2\n fld1\n fldz\n fld1\n"
        "1: cmpl $0, %[stop]\n je 1b\n"
        "fnstcw %[control]\n fnstsw %[status]\n"
        "fstpt 0(%[out])\n fstpt 16(%[out])\n fstpt 32(%[out])\n fstpt 48(%[out])\n"
        "fstpt 64(%[out])\n fstpt 80(%[out])\n fstpt 96(%[out])\n fstpt 112(%[out])\n"
        "fninit\n"
        : [control] "=m"(control), [status] "=m"(status)
        : [wanted] "m"(wanted), [stop] "m"(stop_flag), [out] "r"(values)
        : "memory", "cc");
  });
  ready();
  wait_moved();
  stop_flag = 1;
  thread.join();
  same("control word", wanted, control);
  same("top of the register stack", 0, (status >> 11) & 7);
  const long double expected[8] = {1,
                                   0,
                                   1,
                                   0.693147180559945309417L,
                                   0.301029995663981195214L,
                                   3.32192809488736234787L,
                                   1.44269504088896340736L,
                                   3.14159265358979323846L};
  for (int i = 0; i < 8; ++i) {
    long double off = values[i] - expected[i];
    check(off < 1e-15L && off > -1e-15L, "st(%d) was %.18Lf, is %.18Lf", i, expected[i], values[i]);
  }
  return ok();
}
