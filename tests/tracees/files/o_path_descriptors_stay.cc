// O_PATH descriptors: of a file, a directory, a symbolic link itself, a FIFO, a device.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string file = scratch.path("file"), dir = scratch.path("dir"), link = scratch.path("link"),
              fifo = scratch.path("fifo");
  write_file(file, "content");
  need(mkdir(dir.c_str(), 0700) == 0 && symlink("file", link.c_str()) == 0 &&
           mkfifo(fifo.c_str(), 0600) == 0,
       "set-up of the directory");
  write_file(scratch.path("dir/inner"), "inner");
  struct Case {
    const char* what;
    std::string path;
    int flags;
    mode_t type;
    int fd = -1;
    int shown = 0;
  } cases[] = {{"file", file, 0, S_IFREG},
               {"directory", dir, O_DIRECTORY | O_CLOEXEC, S_IFDIR},
               {"symbolic link", link, O_NOFOLLOW, S_IFLNK},
               {"FIFO", fifo, 0, S_IFIFO},
               {"device", "/dev/null", 0, S_IFCHR}};
  for (Case& c : cases) {
    c.fd = open(c.path.c_str(), O_PATH | c.flags);
    need(c.fd >= 0, "open(%s, O_PATH)", c.what);
    c.shown = fcntl(c.fd, F_GETFL);
  }
  ready();
  wait_moved();
  char text[16] = {};
  for (const Case& c : cases) {
    struct stat st = {};
    check(fstat(c.fd, &st) == 0, "fstat of the %s: errno %d", c.what, errno);
    same(c.what, c.type, st.st_mode & S_IFMT);
    same("F_GETFL", c.shown, fcntl(c.fd, F_GETFL));
    same("F_GETFD", (c.flags & O_CLOEXEC) != 0 ? FD_CLOEXEC : 0, fcntl(c.fd, F_GETFD));
    check(read(c.fd, text, 1) == -1 && errno == EBADF, "the %s can be read", c.what);
  }
  int inner = openat(cases[1].fd, "inner", O_RDONLY);
  check(inner >= 0 && read(inner, text, 5) == 5, "openat: errno %d", errno);
  same("inner", "inner", text);
  check(readlinkat(cases[2].fd, "", text, sizeof text) == 4 && memcmp(text, "file", 4) == 0,
        "readlinkat: errno %d", errno);
  int again = open(("/proc/self/fd/" + std::to_string(cases[0].fd)).c_str(), O_RDONLY);
  check(again >= 0 && read(again, text, 7) == 7 && memcmp(text, "content", 7) == 0,
        "opened again by /proc/self/fd: errno %d", errno);
  return ok();
}
