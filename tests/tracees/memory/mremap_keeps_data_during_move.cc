// Areas that move, grow, shrink and land beside others while they are tracked: the tracker loses
// sight of an area moved by mremap, and sees stale data where another was before.
#include "tracee.h"
using namespace tracee;

struct Area {
  uint8_t* at;
  size_t pages;
  uint64_t seed;
};

bool check_area(const Area& a) {
  for (size_t i = 0; i < a.pages; ++i)
    if (!check_filled("area after mremap", a.at + i * page_size, page_size, a.seed + i * 1000))
      return false;
  return true;
}

int main() {
  constexpr size_t slots = 16, slot_pages = 32;
  uint8_t* room = map(slots * slot_pages * page_size, PROT_NONE);
  uint8_t* scratch = map(slot_pages * page_size, PROT_NONE);
  std::vector<Area> areas;
  for (size_t i = 0; i < slots; ++i) {
    Area a{room + i * slot_pages * page_size, slot_pages, i * 1'000'000};
    map(slot_pages * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
        a.at);
    for (size_t k = 0; k < a.pages; ++k) fill(a.at + k * page_size, page_size, a.seed + k * 1000);
    areas.push_back(a);
  }
  auto relocate = [](Area& a, uint8_t* to) {
    need(mremap(a.at, a.pages * page_size, a.pages * page_size, MREMAP_MAYMOVE | MREMAP_FIXED,
                to) == to,
         "mremap");
    a.at = to;
  };
  uint64_t step = 0;
  auto exercise = [&] {
    Area& a = areas[mix(step) % slots];
    Area& b = areas[mix(step + 77) % slots];
    ++step;
    if (&a != &b) {  // Swap the places of two.
      uint8_t *at_a = a.at, *at_b = b.at;
      relocate(a, scratch);
      relocate(b, at_a);
      relocate(a, at_b);
      map(slot_pages * page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, scratch);
    }
    size_t half = a.pages / 2;  // Shrink, then grow: the new part reads zero before we write it.
    need(mremap(a.at, a.pages * page_size, half * page_size, 0) == a.at, "mremap, shrink");
    need(mremap(a.at, half * page_size, a.pages * page_size, 0) == a.at, "mremap, grow");
    for (size_t k = half; k < a.pages; ++k) {
      if (!check_all("grown part", a.at + k * page_size, page_size, 0)) return false;
      fill(a.at + k * page_size, page_size, a.seed + k * 1000);
    }
    return check_area(a) && check_area(b);
  };
  ready();
  while (!moved())
    if (!exercise()) return 1;
  for (const Area& a : areas) check_area(a);
  for (int i = 0; i < 200; ++i)  // And in a drain, or after the last move.
    if (!exercise()) return 1;
  for (const Area& a : areas) check_area(a);
  return ok();
}
