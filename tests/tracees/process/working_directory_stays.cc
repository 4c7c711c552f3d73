// The current directory: a private one, and relative paths from it.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string inner = scratch.path("inner");
  need(mkdir(inner.c_str(), 0700) == 0, "mkdir");
  write_file(scratch.path("inner/file"), "here");
  need(chdir(inner.c_str()) == 0, "chdir");
  ready();
  wait_moved();
  char cwd[256] = {};
  check(getcwd(cwd, sizeof cwd) != nullptr, "getcwd: errno %d", errno);
  same("directory", inner, cwd);
  same("file by its relative path", "here", read_file("file"));
  same("the parent's entry", "here", read_file("../inner/file"));
  return ok();
}
