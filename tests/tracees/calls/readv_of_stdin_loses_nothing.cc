// As read_of_stdin_loses_nothing, by readv and preadv2 into pieces of odd sizes.
#include <sys/uio.h>

#include "tracee.h"
using namespace tracee;

int main() {
  ready();
  std::string rest;
  uint64_t expected = 0, calls = 0;
  for (;;) {
    char head[7], middle[300], tail[1001];
    iovec pieces[] = {{head, sizeof head}, {middle, sizeof middle}, {tail, sizeof tail}};
    ssize_t n = ++calls % 2 == 0 ? readv(0, pieces, 3) : preadv2(0, pieces, 3, -1, 0);
    if (n < 0 && check(false, "readv: errno %d", errno)) continue;
    if (n <= 0) {
      check(false, "stdin ended after line %llu", static_cast<unsigned long long>(expected));
      return ok();
    }
    for (const iovec& piece : pieces) {
      size_t here = std::min<size_t>(piece.iov_len, static_cast<size_t>(n));
      rest.append(static_cast<char*>(piece.iov_base), here);
      n -= static_cast<ssize_t>(here);
    }
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
