// A Unix socket pair with data under way; recv with SO_RCVTIMEO.
#include <sys/socket.h>
#include <sys/time.h>

#include "calls.h"
using namespace tracee;

int main() {
  int pair[2], quiet[2];
  need(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 &&
           socketpair(AF_UNIX, SOCK_DGRAM, 0, quiet) == 0,
       "socketpair");
  need(write(pair[0], "under way", 9) == 9, "write");
  TimedCall receiving("recv with SO_RCVTIMEO", SYS_recvfrom, -EAGAIN, [&](int64_t us) -> long {
    timeval limit = {us / 1'000'000, us % 1'000'000};
    setsockopt(quiet[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    char c;
    return sys_result(recv(quiet[0], &c, 1, 0));
  });
  ready();
  wait_moved();
  receiving.finish();
  char text[10] = {};
  check(read(pair[1], text, 9) == 9, "read: errno %d", errno);
  same("queue", "under way", text);
  return ok();
}
