// Counted side effects: a system call that is done twice, or not at all, when its thread is stopped
// around it shows in the length and content of a file.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("log");
  int fd = open(path.c_str(), O_RDWR | O_CREAT, 0600);
  need(fd >= 0, "open");
  uint64_t count = 0;
  std::atomic<uint64_t> seeks{0};
  int other = open(path.c_str(), O_RDONLY);
  Background seeker([&](std::atomic<bool>& stop) {
    for (; !stop; ++seeks) {  // The answer tells whether the last one was done, once.
      off_t at = lseek(other, 1, SEEK_CUR);
      if (!same("lseek", seeks + 1, static_cast<uint64_t>(at))) return;
    }
  });
  constexpr uint64_t count_max = 4'000'000;
  ready();
  while (!moved()) {
    for (int i = 0; i < 100 && count < count_max; ++i, ++count) {
      ssize_t n = write(fd, &count, 8);
      if (!check(n == 8, "write %llu: %zd, errno %d", static_cast<unsigned long long>(count), n,
                 errno))
        return ok();
    }
  }
  seeker.finish();
  std::string text = read_file(path);
  same("size of the file", count * 8, text.size());
  for (uint64_t i = 0; i < text.size() / 8; ++i) {
    uint64_t value;
    memcpy(&value, text.data() + i * 8, 8);
    if (!same("record", i, value)) break;
  }
  return ok();
}
