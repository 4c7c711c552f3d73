// xmm0 to xmm15.
#include "vector_loop.h"
using namespace tracee;

#define ALL(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15)
#define LOAD(i) "movaps 16*" #i "(%[in]), %%xmm" #i "\n"
#define STORE(i) "movaps %%xmm" #i ", 16*" #i "(%[out])\n"

int main() {
  return vector_tracee(16 * 16, [](uint8_t* in, uint8_t* out) {
    asm volatile(ALL(LOAD) "1: cmpl $0, %[stop]\n je 1b\n" ALL(STORE)
                 :
                 : [in] "r"(in), [out] "r"(out), [stop] "m"(vector_stop)
                 : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                   "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
  });
}
