// The main stack grows by itself far beyond where it was when the program was moved.
#include "tracee.h"
using namespace tracee;

[[gnu::noinline]] uint64_t use_stack(int kib) {
  volatile uint8_t block[1024];
  block[0] = static_cast<uint8_t>(kib);
  block[1023] = 0;
  uint64_t below = kib > 1 ? use_stack(kib - 1) : 0;
  return below + block[0];
}

int main() {
  ready();
  wait_moved();
  uint64_t expected = 0;
  for (int kib = 1; kib <= 6000; ++kib) expected += static_cast<uint8_t>(kib);
  same("sum over 6 MiB of stack", expected, use_stack(6000));
  check(read_file("/proc/self/maps").find("[stack]") != std::string::npos, "no [stack] in maps");
  return ok();
}
