// A named FIFO in the private /tmp: open for both, a reader and a writer of its own, its content, size
// and name; and one that is not open.
#include "calls.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("fifo"), closed = scratch.path("closed");
  need(mkfifo(path.c_str(), 0620) == 0 && mkfifo(closed.c_str(), 0600) == 0, "mkfifo");
  int both = open(path.c_str(), O_RDWR);
  int reader = open(path.c_str(), O_RDONLY | O_NONBLOCK), writer = open(path.c_str(), O_WRONLY);
  need(both >= 0 && reader >= 0 && writer >= 0 && write(both, "fifo", 4) == 4, "open");
  need(fcntl(writer, F_SETPIPE_SZ, 128 * 1024) > 0, "F_SETPIPE_SZ");
  const int flags[] = {fcntl(both, F_GETFL), fcntl(reader, F_GETFL), fcntl(writer, F_GETFL)};
  struct stat before = {};
  need(fstat(both, &before) == 0, "fstat");
  ready();
  wait_moved();
  struct stat now = {}, named = {};
  check(fstat(both, &now) == 0 && stat(path.c_str(), &named) == 0, "stat: errno %d", errno);
  same("mode", before.st_mode, now.st_mode);
  same("owner", before.st_uid, now.st_uid);
  same("time of the last write", before.st_mtim.tv_nsec, now.st_mtim.tv_nsec);
  check(now.st_ino == named.st_ino && now.st_dev == named.st_dev, "it isn't the one at its path");
  same("F_GETFL of both", flags[0], fcntl(both, F_GETFL));
  same("F_GETFL of the reader", flags[1], fcntl(reader, F_GETFL));
  same("F_GETFL of the writer", flags[2], fcntl(writer, F_GETFL));
  same("F_GETPIPE_SZ", 128 * 1024, fcntl(both, F_GETPIPE_SZ));
  check(write(writer, "more", 4) == 4, "write: errno %d", errno);
  char text[16] = {};
  check(read(reader, text, sizeof text - 1) == 8, "read: errno %d", errno);
  same("content", "fifomore", text);
  int other = open(closed.c_str(), O_RDWR);
  check(other >= 0 && write(other, "x", 1) == 1, "the closed one: errno %d", errno);
  close(reader);
  close(both);
  signal(SIGPIPE, SIG_IGN);
  check(write(writer, "x", 1) == -1 && errno == EPIPE, "somebody else has a reading end");
  return ok();
}
