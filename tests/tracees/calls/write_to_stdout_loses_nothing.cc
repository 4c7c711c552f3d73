// Numbered lines go out on stdout while we are moved, as fast as the reader takes them; the harness
// counts them.
#include "tracee.h"
using namespace tracee;

int main() {
  ready();
  uint64_t count = 0;
  while (!moved()) {
    std::string block;
    for (int i = 0; i < 20; ++i) block += "line " + std::to_string(count++) + "\n";
    for (size_t done = 0; done < block.size();) {
      ssize_t n = write(1, block.data() + done, block.size() - done);
      if (n <= 0) return 1;
      done += static_cast<size_t>(n);
    }
    usleep(1000);
  }
  say("lines %llu", static_cast<unsigned long long>(count));
  return ok();
}
