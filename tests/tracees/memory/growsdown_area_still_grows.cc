// A MAP_GROWSDOWN area of our own: keeps its data and its flag, and grows at a touch below it.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr size_t room = 64 * MiB, bytes = 16 * page_size;
  // Room below, so that nothing else is mapped where it will grow to.
  uint8_t* low = map(room, PROT_NONE);
  need(munmap(low, room) == 0, "munmap");
  uint8_t* area = map(bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1,
                      low + room - bytes);
  fill(area, bytes, 3);
  for (size_t i = 1; i <= 4; ++i)
    area[-static_cast<ptrdiff_t>(i * page_size)] = static_cast<uint8_t>(i);
  ready();
  wait_moved();
  check_filled("area", area, bytes, 3);
  check(has_vm_flag(area, "gd"), "flag gd is gone");
  for (size_t i = 1; i <= 4; ++i)
    same("page grown before the move", i, area[-static_cast<ptrdiff_t>(i * page_size)]);
  for (size_t i = 5; i <= 64; ++i)
    area[-static_cast<ptrdiff_t>(i * page_size)] =
        static_cast<uint8_t>(i);  // Dies if it doesn't grow.
  for (size_t i = 5; i <= 64; ++i)
    same("page grown after the move", i, area[-static_cast<ptrdiff_t>(i * page_size)]);
  return ok();
}
