// 500 areas side by side that could merge, or must not: the layout in /proc/self/maps is the same
// after.
#include "tracee.h"
using namespace tracee;

// Addresses, protection, offset and kind of each area in our room.
std::string layout(uint8_t* from, size_t bytes) {
  std::string all = read_file("/proc/self/maps"), result;
  for (size_t at = 0; at < all.size();) {
    size_t end = all.find('\n', at);
    std::string line = all.substr(at, end - at);
    at = end + 1;
    unsigned long low, high, offset;
    char prot[5];
    if (sscanf(line.c_str(), "%lx-%lx %4s %lx", &low, &high, prot, &offset) != 4) continue;
    if (low < reinterpret_cast<uintptr_t>(from) || high > reinterpret_cast<uintptr_t>(from) + bytes)
      continue;
    result += line.substr(0, line.find(' ')) + " " + prot +
              (line.find('/') == std::string::npos ? " anonymous\n" : " file\n");
  }
  return result;
}

int main() {
  constexpr size_t areas = 500, step = 3;
  uint8_t* room = map((areas * step + 2) * page_size, PROT_NONE);
  need(munmap(room, (areas * step + 2) * page_size) == 0, "munmap");
  room += page_size;  // A hole at each end: our outermost areas don't merge with others'.
  int fd = memfd_create("layout", 0);
  need(fd >= 0 && ftruncate(fd, areas * page_size) == 0, "memfd");
  for (size_t i = 0; i < areas; ++i) {
    uint8_t* at = room + i * step * page_size;
    int prot = i % 5 == 0 ? PROT_NONE : i % 3 == 0 ? PROT_READ : PROT_READ | PROT_WRITE;
    size_t pages = i % 4 == 0 ? step : 1;
    if (i % 7 == 0)
      map(pages * page_size, prot, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, at,
          static_cast<off_t>(i * page_size));
    else
      map(pages * page_size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, at);
    if (i % 7 != 0 && (prot & PROT_WRITE) != 0) *at = static_cast<uint8_t>(i);
  }
  std::string before = layout(room, areas * step * page_size);
  need(before.size() > 10'000, "layout");
  ready();
  wait_moved();
  std::string now = layout(room, areas * step * page_size);
  if (before != now) {
    size_t at = 0;
    while (at < before.size() && at < now.size() && before[at] == now[at]) ++at;
    at = before.rfind('\n', at) + 1;
    check(false, "layout: was \"%s\", is \"%s\"", before.substr(at, 60).c_str(),
          now.substr(std::min(at, now.size()), 60).c_str());
  }
  return ok();
}
