// A Unix socket pair with data under way.
#include <sys/socket.h>

#include "tracee.h"
using namespace tracee;

int main() {
  int pair[2];
  need(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
  need(write(pair[0], "under way", 9) == 9, "write");
  ready();
  wait_moved();
  char text[10] = {};
  check(read(pair[1], text, 9) == 9, "read: errno %d", errno);
  same("queue", "under way", text);
  return ok();
}
