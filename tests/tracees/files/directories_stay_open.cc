// Directories of the private /tmp: one that was renamed since it was opened, one without search
// permission for us, one in /dev/shm; fchdir into one of them works.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string first = scratch.path("first"), closed = scratch.path("closed"),
              shm = "/dev/shm/tracee-" + std::to_string(getpid());
  need(mkdir(first.c_str(), 0755) == 0 && mkdir(closed.c_str(), 0700) == 0 &&
           mkdir(shm.c_str(), 0700) == 0,
       "mkdir");
  int fds[] = {open(first.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC),
               open(closed.c_str(), O_RDONLY | O_DIRECTORY),
               open(shm.c_str(), O_RDONLY | O_DIRECTORY)};
  for (int fd : fds) need(fd >= 0, "open of a directory");
  need(rename(first.c_str(), (scratch.dir() + "/second").c_str()) == 0, "rename");
  need(chmod(closed.c_str(), 0) == 0, "chmod");
  ready();
  wait_moved();
  for (int fd : fds) {
    struct stat st = {};
    check(fstat(fd, &st) == 0 && S_ISDIR(st.st_mode), "not a directory any more: errno %d", errno);
  }
  struct stat named = {}, opened = {};
  check(stat((scratch.dir() + "/second").c_str(), &named) == 0 && fstat(fds[0], &opened) == 0 &&
            named.st_ino == opened.st_ino,
        "the renamed directory is another one: errno %d", errno);
  for (int fd : {fds[0], fds[2]}) {
    int made = openat(fd, "new", O_RDWR | O_CREAT | O_EXCL, 0600);
    check(made >= 0, "openat: errno %d", errno);
    check(unlinkat(fd, "new", 0) == 0, "unlinkat: errno %d", errno);
  }
  check(fstat(fds[1], &opened) == 0 && (opened.st_mode & 07777) == 0, "mode 0%o of the closed one",
        opened.st_mode & 07777);
  check(fchdir(fds[0]) == 0, "fchdir: errno %d", errno);
  char cwd[1024] = {};
  same("working directory", scratch.dir() + "/second",
       getcwd(cwd, sizeof cwd) != nullptr ? cwd : "");
  rmdir(shm.c_str());
  rmdir((scratch.dir() + "/second").c_str());
  return ok();
}
