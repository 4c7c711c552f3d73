// A pipe to oneself with data in it, its size, and threads that wait in read, write and poll.
#include "calls.h"
using namespace tracee;

int main() {
  int full[2], empty[2], stuffed[2], quiet[2];
  need(pipe2(full, O_CLOEXEC) == 0 && pipe(empty) == 0 && pipe(stuffed) == 0 && pipe(quiet) == 0,
       "pipe");
  need(fcntl(full[1], F_SETPIPE_SZ, 256 * 1024) > 0 && fcntl(stuffed[1], F_SETPIPE_SZ, 4096) > 0,
       "F_SETPIPE_SZ");
  std::vector<uint64_t> data(16 * 1024), page(512);
  fill(data.data(), data.size() * 8, 7);
  fill(page.data(), 4096, 8);
  need(write(full[1], data.data(), data.size() * 8) == static_cast<ssize_t>(data.size() * 8) &&
           write(stuffed[1], page.data(), 4096) == 4096,
       "write");
  char byte = 0;
  BlockedCall reading("read of a pipe", SYS_read,
                      [&]() -> long { return sys_result(read(empty[0], &byte, 1)); });
  BlockedCall writing("write to a full pipe", SYS_write,
                      [&]() -> long { return sys_result(write(stuffed[1], "w", 1)); });
  pollfd asked = {quiet[0], POLLIN, 0};
  BlockedCall polling("poll of a pipe", SYS_poll,
                      [&]() -> long { return sys_result(poll(&asked, 1, -1)); });
  ready();
  wait_moved();
  reading.check_still_blocked();
  writing.check_still_blocked();
  polling.check_still_blocked();
  check(write(empty[1], "p", 1) == 1, "write: errno %d", errno);
  reading.check_returns(1);
  same("byte read", 'p', byte);
  check(write(quiet[1], "q", 1) == 1, "write: errno %d", errno);
  polling.check_returns(1);
  std::vector<uint64_t> room(512);
  check(read(stuffed[0], room.data(), 4096) == 4096, "read: errno %d", errno);
  check(room == page, "the full pipe's content changed");
  writing.check_returns(1);
  check(read(stuffed[0], &byte, 1) == 1 && byte == 'w', "what was written late is %c", byte);
  same("F_GETPIPE_SZ", 256 * 1024, fcntl(full[0], F_GETPIPE_SZ));
  same("F_GETPIPE_SZ of the small one", 4096, fcntl(stuffed[0], F_GETPIPE_SZ));
  std::vector<uint64_t> now(data.size());
  check(read(full[0], now.data(), now.size() * 8) == static_cast<ssize_t>(now.size() * 8),
        "read: errno %d", errno);
  check(now == data, "the pipe's content changed");
  return ok();
}
