// malloc by brk, while being moved; the break goes on where it was.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t blocks_max = 200'000, block_bytes = 128;
  std::vector<uint8_t*> blocks;
  blocks.reserve(blocks_max);
  ready();
  while (!moved()) {
    if (blocks.size() == blocks_max) {
      usleep(1000);
      continue;
    }
    for (int i = 0; i < 100; ++i) {
      blocks.push_back(static_cast<uint8_t*>(malloc(block_bytes)));
      fill(blocks.back(), block_bytes, blocks.size());
    }
    usleep(100);
  }
  for (size_t i = 0; i < blocks.size(); ++i)
    if (!check_filled("heap block", blocks[i], block_bytes, i + 1)) break;
  void* before = sbrk(1 * MiB);
  check(before != reinterpret_cast<void*>(-1), "sbrk: errno %d", errno);
  memset(before, 0x5a, 1 * MiB);
  same("program break", reinterpret_cast<uintptr_t>(before) + 1 * MiB,
       reinterpret_cast<uintptr_t>(sbrk(0)));
  check(read_file("/proc/self/maps").find("[heap]") != std::string::npos, "no [heap] in maps");
  for (uint8_t* block : blocks) free(block);
  return ok();
}
