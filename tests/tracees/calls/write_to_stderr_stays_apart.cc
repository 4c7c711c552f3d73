// stderr isn't stdout: the harness reads both and wants these lines on stderr only.
#include "tracee.h"
using namespace tracee;

int main() {
  ready();
  uint64_t count = 0;
  while (!moved()) {
    std::string line = "error line " + std::to_string(count++) + "\n";
    if (write(2, line.data(), line.size()) != static_cast<ssize_t>(line.size())) return 1;
    usleep(2000);
  }
  say("error lines %llu", static_cast<unsigned long long>(count));
  return ok();
}
