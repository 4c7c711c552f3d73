// Locks of fcntl: of the process and of the open file description, on byte ranges.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  write_file(scratch.path("lock"), std::string(100, 'x'));
  std::string path = scratch.dir() + "/lock";
  int a = open(path.c_str(), O_RDWR), b = open(path.c_str(), O_RDWR);
  auto range = [](short type, off_t from, off_t bytes) {
    struct flock lock = {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = from;
    lock.l_len = bytes;
    return lock;
  };
  struct flock owned = range(F_WRLCK, 10, 5), process = range(F_WRLCK, 50, 10);
  need(fcntl(a, F_OFD_SETLK, &owned) == 0 && fcntl(a, F_SETLK, &process) == 0, "fcntl");
  ready();
  wait_moved();
  struct flock probe = range(F_WRLCK, 12, 1);
  check(fcntl(b, F_OFD_SETLK, &probe) == -1 && (errno == EAGAIN || errno == EACCES),
        "the open file's lock is lost");
  probe = range(F_WRLCK, 55, 1);
  check(fcntl(b, F_OFD_GETLK, &probe) == 0, "F_OFD_GETLK: errno %d", errno);
  check(probe.l_type == F_WRLCK && probe.l_start == 50 && probe.l_pid == getpid(),
        "the process' lock is lost");
  return ok();
}
