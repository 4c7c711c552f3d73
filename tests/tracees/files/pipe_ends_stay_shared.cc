// Which descriptors are ends of which pipe, and which of them are one open file description:
// duplicates, a description of its own for one end (by /proc), one that reads and writes.
#include "tracee.h"
using namespace tracee;

namespace {

long compared(int a, int b) {
  return syscall(SYS_kcmp, getpid(), getpid(), 0 /* KCMP_FILE */, a, b) != 0;
}

int open_again(int fd, int flags) {
  return open(("/proc/self/fd/" + std::to_string(fd)).c_str(), flags);
}

}  // namespace

int main() {
  int one[2], two[2];
  need(pipe(one) == 0 && pipe2(two, O_NONBLOCK | O_CLOEXEC) == 0, "pipe");
  std::vector<int> fds = {one[0],
                          one[1],
                          two[0],
                          two[1],
                          dup(one[0]),
                          fcntl(one[1], F_DUPFD_CLOEXEC, 50),
                          open_again(one[0], O_RDONLY | O_NONBLOCK),
                          open_again(one[0], O_WRONLY),
                          open_again(two[1], O_RDWR)};
  std::vector<int> flags, cloexec;
  std::vector<long> same_file;
  std::vector<ino_t> inodes;
  struct stat st = {};
  for (int fd : fds) {
    need(fd >= 0 && fstat(fd, &st) == 0, "open");
    flags.push_back(fcntl(fd, F_GETFL));
    cloexec.push_back(fcntl(fd, F_GETFD));
    inodes.push_back(st.st_ino);
  }
  const struct stat before = st;
  for (int a : fds)
    for (int b : fds) same_file.push_back(compared(a, b));
  ready();
  wait_moved();
  size_t pair = 0;
  for (size_t a = 0; a < fds.size(); ++a) {
    same("F_GETFL", flags[a], fcntl(fds[a], F_GETFL));
    same("F_GETFD", cloexec[a], fcntl(fds[a], F_GETFD));
    for (size_t b = 0; b < fds.size(); ++b) {
      struct stat x = {}, y = {};
      check(fstat(fds[a], &x) == 0 && fstat(fds[b], &y) == 0, "fstat: errno %d", errno);
      check((inodes[a] == inodes[b]) == (x.st_ino == y.st_ino), "descriptors %d and %d: same pipe?",
            fds[a], fds[b]);
      check(same_file[pair++] == compared(fds[a], fds[b]), "descriptors %d and %d: same file?",
            fds[a], fds[b]);
    }
  }
  check(fstat(fds.back(), &st) == 0, "fstat: errno %d", errno);
  same("mode", before.st_mode, st.st_mode);
  same("owner", before.st_uid, st.st_uid);
  int late = open_again(two[0], O_WRONLY | O_NONBLOCK);
  check(late >= 0, "a pipe of ours can't be opened any more: errno %d", errno);
  check(write(late, "late", 4) == 4, "write: errno %d", errno);
  char text[5] = {};
  check(read(fds.back(), text, 4) == 4, "read: errno %d", errno);
  same("text through the late end", "late", text);
  check(read(two[0], text, 4) == -1 && errno == EAGAIN, "read of the empty one: errno %d", errno);
  return ok();
}
