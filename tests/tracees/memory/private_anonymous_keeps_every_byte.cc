// Written once, written all the time, and never written: all of it is right after the moves.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t still_bytes = 32 * MiB, hot_bytes = 4 * MiB, hole_bytes = 64 * MiB;
  uint8_t* still = map(still_bytes);
  fill(still, still_bytes, 1);
  uint8_t* hole = map(hole_bytes);
  auto* hot = reinterpret_cast<uint64_t*>(map(hot_bytes));
  uint64_t writes = 0;
  constexpr size_t words = hot_bytes / 8;
  ready();
  // Word i holds the number of its last write: what must be there follows from the count alone.
  while (writes % 1024 != 0 || !moved()) hot[mix(writes) % words] = writes + 1, ++writes;
  check_filled("still", still, still_bytes, 1);
  std::vector<uint64_t> expected(words);
  for (uint64_t i = 0; i < writes; ++i) expected[mix(i) % words] = i + 1;
  for (size_t i = 0; i < words; ++i)
    if (!check(hot[i] == expected[i], "hot word %zu lost a write", i)) break;
  for (size_t at = 0; at < hole_bytes; at += page_size)
    if (!check(hole[at] == 0, "byte %zu of the untouched area isn't zero", at)) break;
  return ok();
}
