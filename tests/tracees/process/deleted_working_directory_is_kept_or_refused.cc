// A current directory that has no name any more.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string gone = scratch.path("gone");
  need(mkdir(gone.c_str(), 0700) == 0 && chdir(gone.c_str()) == 0 && rmdir(gone.c_str()) == 0,
       "mkdir, chdir, rmdir");
  ready();
  wait_moved();
  char cwd[256];
  check(getcwd(cwd, sizeof cwd) == nullptr && errno == ENOENT, "getcwd finds the directory again");
  check(open("new", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT,
        "a file could be made in a deleted directory");
  return ok();
}
