// splice(2) from the pipe on stdin into a file: what came is what was sent, in order.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("copy");
  int fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  need(fd >= 0, "open");
  ready();
  std::string tail;
  for (off_t size = 0; tail.size() < 7 || tail.substr(tail.size() - 7) != "\ncheck\n";) {
    ssize_t n = splice(0, nullptr, fd, nullptr, 4096, 0);
    if (!check(n > 0, "splice: %zd, errno %d", n, errno)) return ok();
    size += n;
    char end[7] = {};
    ssize_t got = pread(fd, end, sizeof end, std::max<off_t>(0, size - 7));
    if (!check(got > 0, "pread: errno %d", errno)) return ok();
    tail.assign(end, static_cast<size_t>(got));
  }
  std::string all = read_file(path);
  size_t at = 0;
  uint64_t expected = 0;
  for (size_t end; (end = all.find('\n', at)) != std::string::npos; at = end + 1, ++expected) {
    std::string line = all.substr(at, end - at);
    if (line == "check") break;
    if (!check(line == "line " + std::to_string(expected), "line %llu is \"%s\"",
               static_cast<unsigned long long>(expected), line.c_str()))
      break;
  }
  check(expected > 0, "no line came");
  return ok();
}
