// A pipe to oneself with data in it, its size, and a thread that waits in read.
#include "calls.h"
using namespace tracee;

int main() {
  int full[2], empty[2];
  need(pipe2(full, O_CLOEXEC) == 0 && pipe(empty) == 0, "pipe");
  need(fcntl(full[1], F_SETPIPE_SZ, 256 * 1024) > 0, "F_SETPIPE_SZ");
  std::vector<uint64_t> data(16 * 1024);
  fill(data.data(), data.size() * 8, 7);
  need(write(full[1], data.data(), data.size() * 8) == static_cast<ssize_t>(data.size() * 8),
       "write");
  char c = 0;
  BlockedCall reading("read of a pipe", SYS_read,
                      [&]() -> long { return sys_result(read(empty[0], &c, 1)); });
  ready();
  wait_moved();
  reading.check_still_blocked();
  check(write(empty[1], "p", 1) == 1, "write: errno %d", errno);
  reading.check_returns(1);
  same("byte read", 'p', c);
  same("F_GETPIPE_SZ", 256 * 1024, fcntl(full[0], F_GETPIPE_SZ));
  std::vector<uint64_t> now(data.size());
  check(read(full[0], now.data(), now.size() * 8) == static_cast<ssize_t>(now.size() * 8),
        "read: errno %d", errno);
  check(now == data, "the pipe's content changed");
  return ok();
}
