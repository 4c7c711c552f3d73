// Permission for AMX, asked by arch_prctl, and a tile's content.
#include <asm/prctl.h>

#include "tracee.h"
using namespace tracee;

constexpr int arch_get_xcomp_perm = 0x1022, arch_req_xcomp_perm = 0x1023, xfeature_tile_data = 18;

int main() {
  if (syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_tile_data) != 0)
    skip("no AMX: errno %d", errno);
  alignas(64) uint8_t config[64] = {1};
  config[16] = 64;  // Tile 0: 16 rows of 64 bytes.
  config[48] = 16;
  alignas(64) uint8_t in[1024], out[1024] = {};
  fill(in, sizeof in, 5);
  asm volatile("ldtilecfg %0" ::"m"(config));
  asm volatile("tileloadd (%0,%1,1), %%tmm0" ::"r"(in), "r"(64L) : "memory");
  ready();
  while (!moved()) usleep(100);
  asm volatile("tilestored %%tmm0, (%0,%1,1)" ::"r"(out), "r"(64L) : "memory");
  asm volatile("tilerelease");
  check_filled("tile", out, sizeof out, 5);
  uint64_t permitted = 0;
  check(syscall(SYS_arch_prctl, arch_get_xcomp_perm, &permitted) == 0 &&
            (permitted >> xfeature_tile_data & 1) != 0,
        "permission is lost");
  return ok();
}
