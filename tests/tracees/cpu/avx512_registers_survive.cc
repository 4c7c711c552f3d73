// zmm0 to zmm31 and the mask registers k0 to k7.
#include "vector_loop.h"
using namespace tracee;

#define LOW(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15)
#define HIGH(f) \
  f(16) f(17) f(18) f(19) f(20) f(21) f(22) f(23) f(24) f(25) f(26) f(27) f(28) f(29) f(30) f(31)
#define MASKS(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7)
#define LOAD(i) "vmovaps 64*" #i "(%[in]), %%zmm" #i "\n"
#define STORE(i) "vmovaps %%zmm" #i ", 64*" #i "(%[out])\n"
// 16 bits each: what AVX512F alone moves.
#define LOAD_MASK(i) "kmovw 2048+2*" #i "(%[in]), %%k" #i "\n"
#define STORE_MASK(i) "kmovw %%k" #i ", 2048+2*" #i "(%[out])\n"

int main() {
  if (!__builtin_cpu_supports("avx512f")) skip("this processor has no AVX-512");
  return vector_tracee(2048 + 16, [](uint8_t* in, uint8_t* out) {
    asm volatile(LOW(LOAD) HIGH(LOAD) MASKS(LOAD_MASK) "1: cmpl $0, %[stop]\n je 1b\n" LOW(STORE)
                     HIGH(STORE) MASKS(STORE_MASK) "vzeroupper\n"
                 :
                 : [in] "r"(in), [out] "r"(out), [stop] "m"(vector_stop)
                 : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                   "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
  });
}
