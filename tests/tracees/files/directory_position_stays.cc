// A directory that is half read: the rest comes once each. And openat relative to it.
#include <dirent.h>

#include <set>

#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  constexpr int entries = 300;
  for (int i = 0; i < entries; ++i)
    write_file(scratch.path("entry" + std::to_string(i)), std::to_string(i));
  int fd = open(scratch.dir().c_str(), O_RDONLY | O_DIRECTORY);
  need(fd >= 0, "open");
  std::multiset<std::string> names;
  auto read_some = [&] {
    // By the system call with a small buffer: readdir would have read all of it already.
    alignas(8) char buffer[512];
    long n = syscall(SYS_getdents64, fd, buffer, sizeof buffer);
    check(n >= 0, "getdents64: errno %d", errno);
    for (long at = 0; at < n;) {
      auto* entry = reinterpret_cast<dirent64*>(buffer + at);
      if (entry->d_name[0] != '.') names.insert(entry->d_name);
      at += entry->d_reclen;
    }
    return n > 0;
  };
  for (int i = 0; i < 5; ++i) need(read_some(), "getdents64");
  size_t before = names.size();
  need(before > 10 && before < entries, "half of the entries");
  ready();
  wait_moved();
  while (read_some()) {
  }
  same("entries read in all", static_cast<size_t>(entries), names.size());
  same("different entries", static_cast<size_t>(entries),
       std::set<std::string>(names.begin(), names.end()).size());
  int inner = openat(fd, "entry7", O_RDONLY);
  char c = 0;
  check(inner >= 0 && read(inner, &c, 1) == 1 && c == '7',
        "openat relative to the directory: errno %d", errno);
  return ok();
}
