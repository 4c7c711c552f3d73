// O_APPEND from two descriptors while being moved: every record once, in order, whole.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("log");
  int a = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600),
      b = open(path.c_str(), O_RDWR | O_APPEND);
  need(a >= 0 && b >= 0, "open");
  uint64_t count = 0;
  constexpr uint64_t count_max = 500'000;
  ready();
  while (!moved()) {
    if (count < count_max) {
      uint64_t record[2] = {count, mix(count)};
      if (!check(write(count % 2 == 0 ? a : b, record, 16) == 16, "write: errno %d", errno)) break;
      ++count;
    }
    lseek(b, 0, SEEK_SET);  // Doesn't matter in append mode.
  }
  wait_moved();
  std::string text = read_file(path);
  same("size", count * 16, text.size());
  for (uint64_t i = 0; i < text.size() / 16; ++i) {
    uint64_t record[2];
    memcpy(record, text.data() + i * 16, 16);
    if (!check(record[0] == i && record[1] == mix(i), "record %llu is wrong",
               static_cast<unsigned long long>(i)))
      break;
  }
  return ok();
}
