// The program replaces itself by exec again and again: same pid, same descriptors, other memory. A
// move in whose middle it does so fails and leaves it where it is; the next one moves what it is
// then. Each incarnation tells the next how many there were, by its arguments and by a file.
#include "tracee.h"
using namespace tracee;

constexpr int64_t life_us = 500'000;

int main(int argc, char** argv) {
  long count = 0;
  std::string path;
  if (argc == 4) {
    count = atol(argv[1]);
    path = argv[2];
  } else {
    const char* base = getenv("TMPDIR");
    path =
        std::string(base != nullptr ? base : "/tmp") + "/tracee-exec-" + std::to_string(getpid());
    int fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
    need(fd >= 0 && dup2(fd, 30) == 30, "open(%s)", path.c_str());
    close(fd);
    need(prctl(PR_SET_NAME, "first") == 0, "PR_SET_NAME");
  }
  long written = 0;
  if (count > 0) {
    check(argc == 4 && atoi(argv[3]) == getpid(), "the pid was %s, is %d", argv[3], getpid());
    check(pread(30, &written, sizeof written, 0) == sizeof written, "pread: errno %d", errno);
    same("incarnations by the file", count, written);
  } else {
    ready();
  }
  // Memory of this incarnation only, which the next one must not have.
  constexpr size_t bytes = 4 * MiB;
  uint8_t* memory = map(bytes);
  fill(memory, bytes, count);
  for (int64_t start = now_us(); now_us() - start < life_us && !moved();) usleep(1000);
  check_filled("memory of this incarnation", memory, bytes, count);
  if (check_was_read || failures != 0) {
    unlink(path.c_str());
    return ok();
  }
  ++count;
  need(pwrite(30, &count, sizeof count, 0) == sizeof count, "pwrite");
  std::string number = std::to_string(count), pid = std::to_string(getpid());
  char* arguments[] = {argv[0], number.data(), path.data(), pid.data(), nullptr};
  execv("/proc/self/exe", arguments);
  need(false, "execv");
}
