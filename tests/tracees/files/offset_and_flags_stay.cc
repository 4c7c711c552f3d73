// Regular files: access mode, status flags, offset and identity; read-only, write-only, both.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("data");
  write_file(path, std::string(100'000, 'd') + "end");
  struct Open {
    int flags;
    off_t offset;
    int fd;
    int shown;
  } opens[] = {{O_RDONLY, 100'000, -1, 0},        {O_WRONLY | O_NOATIME, 5, -1, 0},
               {O_RDWR | O_NONBLOCK, 0, -1, 0},   {O_RDWR | O_SYNC, 1LL << 40, -1, 0},
               {O_RDONLY | O_CLOEXEC, 77, -1, 0}, {O_RDONLY | O_PATH, 0, -1, 0}};
  for (Open& o : opens) {
    o.fd = open(path.c_str(), o.flags);
    need(o.fd >= 0, "open with flags 0x%x", o.flags);
    if (o.offset != 0) need(lseek(o.fd, o.offset, SEEK_SET) == o.offset, "lseek");
    o.shown = fcntl(o.fd, F_GETFL);
  }
  struct stat before = {};
  need(fstat(opens[0].fd, &before) == 0, "fstat");
  ready();
  wait_moved();
  for (Open& o : opens) {
    same("F_GETFL", o.shown, fcntl(o.fd, F_GETFL));
    same("F_GETFD", (o.flags & O_CLOEXEC) != 0 ? FD_CLOEXEC : 0, fcntl(o.fd, F_GETFD));
    if ((o.flags & O_PATH) == 0) same("offset", o.offset, lseek(o.fd, 0, SEEK_CUR));
    struct stat now = {};
    check(fstat(o.fd, &now) == 0, "fstat: errno %d", errno);
    same("size", before.st_size, now.st_size);
    same("mode", before.st_mode, now.st_mode);
    same("owner", before.st_uid, now.st_uid);
  }
  char text[4] = {};
  check(read(opens[0].fd, text, 3) == 3, "read: errno %d", errno);
  same("text at the offset", "end", text);
  check(write(opens[0].fd, "x", 1) == -1 && errno == EBADF, "a read-only descriptor can write");
  check(write(opens[1].fd, "W", 1) == 1, "write: errno %d", errno);
  same("byte written, through another descriptor", 1, pread(opens[2].fd, text, 1, 5));
  same("its value", 'W', text[0]);
  return ok();
}
