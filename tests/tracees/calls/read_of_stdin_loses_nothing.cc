// Numbered lines come in on stdin while we are moved: none is lost, doubled or torn.
#include "tracee.h"
using namespace tracee;

int main() {
  ready();
  std::string rest;
  uint64_t expected = 0;
  for (;;) {
    char buffer[4096];
    ssize_t n = read(0, buffer, sizeof buffer);
    if (n < 0 && check(false, "read: errno %d", errno)) continue;
    if (n <= 0) {
      check(false, "stdin ended after line %llu", static_cast<unsigned long long>(expected));
      return ok();
    }
    rest.append(buffer, static_cast<size_t>(n));
    size_t at = 0;
    for (size_t end; (end = rest.find('\n', at)) != std::string::npos; at = end + 1) {
      std::string line = rest.substr(at, end - at);
      if (line == "check") return ok();
      if (!check(line == "line " + std::to_string(expected), "line %llu is \"%s\"",
                 static_cast<unsigned long long>(expected), line.c_str()))
        return 1;
      ++expected;
    }
    rest.erase(0, at);
  }
}
