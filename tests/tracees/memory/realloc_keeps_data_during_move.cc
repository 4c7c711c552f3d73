// realloc of large blocks is mremap in glibc; of small ones it is brk and copies.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t blocks = 24, bytes_max = 4 * MiB;
  std::vector<uint8_t*> block(blocks);
  std::vector<size_t> bytes(blocks);
  uint64_t step = 0;
  auto exercise = [&] {
    size_t i = mix(step) % blocks;
    size_t wanted = (mix(step * 3 + 1) % (i % 2 == 0 ? bytes_max : 64 * KiB)) / 8 * 8 + 8;
    ++step;
    auto* p = static_cast<uint8_t*>(realloc(block[i], wanted));
    need(p != nullptr, "realloc(%zu)", wanted);
    size_t kept = std::min(bytes[i], wanted);
    if (!check_filled("kept by realloc", p, kept, i)) return false;
    fill(p + kept, wanted - kept, i + kept / 8);
    block[i] = p;
    bytes[i] = wanted;
    return true;
  };
  for (size_t i = 0; i < blocks; ++i) exercise();
  ready();
  while (!moved())
    if (!exercise()) return 1;
  for (int i = 0; i < 100; ++i)
    if (!exercise()) return 1;
  for (size_t i = 0; i < blocks; ++i) check_filled("block", block[i], bytes[i], i);
  return ok();
}
