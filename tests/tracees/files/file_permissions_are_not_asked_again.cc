// A descriptor opened before its file became unreadable, and one whose file was renamed meanwhile.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string locked = scratch.path("locked"), old_name = scratch.path("old"),
              new_name = scratch.path("new");
  write_file(locked, "locked");
  write_file(old_name, "renamed");
  int a = open(locked.c_str(), O_RDWR), b = open(old_name.c_str(), O_RDONLY);
  need(a >= 0 && b >= 0 && chmod(locked.c_str(), 0) == 0 &&
           rename(old_name.c_str(), new_name.c_str()) == 0,
       "set-up");
  write_file(old_name, "another");  // The old name now leads to another file.
  ready();
  wait_moved();
  char text[16] = {};
  check(read(a, text, 6) == 6, "read: errno %d", errno);
  same("file without permissions", "locked", text);
  struct stat st = {};
  check(fstat(a, &st) == 0 && (st.st_mode & 0777) == 0, "its mode is 0%o", st.st_mode & 0777);
  memset(text, 0, sizeof text);
  check(read(b, text, 15) == 7, "read: errno %d", errno);
  same("renamed file", "renamed", text);
  return ok();
}
