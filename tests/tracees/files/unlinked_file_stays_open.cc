// Files without a name: read, written on while being moved; two descriptors of one; O_TMPFILE.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("gone");
  write_file(path, std::string(300'000, 'g'));
  int a = open(path.c_str(), O_RDWR), b = open(path.c_str(), O_RDONLY);
  need(a >= 0 && b >= 0 && unlink(path.c_str()) == 0, "open, unlink");
  int nameless = open(scratch.dir().c_str(), O_TMPFILE | O_RDWR, 0600);
  if (nameless >= 0) need(write(nameless, "nameless", 8) == 8, "write");
  lseek(b, 100'000, SEEK_SET);
  lseek(a, 0, SEEK_END);
  uint64_t count = 0;
  ready();
  while (!moved()) {
    if (!check(write(a, &count, 8) == 8, "write: errno %d", errno)) break;
    ++count;
    usleep(100);
  }
  wait_moved();
  struct stat st = {};
  check(fstat(b, &st) == 0, "fstat: errno %d", errno);
  same("names", 0, static_cast<int>(st.st_nlink));
  same("size", 300'000 + count * 8, st.st_size);
  same("offset", 100'000, lseek(b, 0, SEEK_CUR));
  std::vector<uint64_t> records(count);
  check(pread(b, records.data(), count * 8, 300'000) == static_cast<ssize_t>(count * 8),
        "pread: errno %d", errno);
  for (uint64_t i = 0; i < count; ++i)
    if (!same("record", i, records[i])) break;
  check(access(path.c_str(), F_OK) == -1, "the name is back");
  char text[9] = {};
  if (nameless >= 0)
    check(pread(nameless, text, 8, 0) == 8 && strcmp(text, "nameless") == 0,
          "O_TMPFILE file reads \"%s\"", text);
  return ok();
}
