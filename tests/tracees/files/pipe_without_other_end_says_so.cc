// Pipes that have lost one end: readers get the rest and then the end, writers get EPIPE.
#include "tracee.h"
using namespace tracee;

int main() {
  signal(SIGPIPE, SIG_IGN);
  int ended[2], dead[2], unread[2];
  need(pipe(ended) == 0 && pipe(dead) == 0 && pipe(unread) == 0, "pipe");
  need(write(ended[1], "rest", 4) == 4 && write(unread[1], "kept", 4) == 4, "write");
  close(ended[1]);
  close(dead[0]);
  close(unread[0]);
  ready();
  wait_moved();
  pollfd asked[] = {{ended[0], POLLIN, 0}, {dead[1], POLLOUT, 0}};
  check(poll(asked, 2, 0) == 2, "poll: errno %d", errno);
  same("events of the reader", POLLIN | POLLHUP, asked[0].revents);
  same("events of the writer", POLLOUT | POLLERR, asked[1].revents);
  char text[8] = {};
  same("bytes left", 4, read(ended[0], text, sizeof text));
  same("the rest", "rest", text);
  same("the end", 0, read(ended[0], text, sizeof text));
  check(write(dead[1], "x", 1) == -1 && errno == EPIPE, "write: errno %d, not EPIPE", errno);
  // What nobody can read is still there for who opens the pipe anew.
  int late = open(("/proc/self/fd/" + std::to_string(unread[1])).c_str(), O_RDONLY | O_NONBLOCK);
  check(late >= 0, "open: errno %d", errno);
  memset(text, 0, sizeof text);
  same("bytes nobody could read", 4, read(late, text, sizeof text));
  same("their text", "kept", text);
  return ok();
}
