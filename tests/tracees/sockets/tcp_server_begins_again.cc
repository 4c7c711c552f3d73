// A server ends and begins again at its address, while connections of its former life go on.
#include "tcp.h"
using namespace tracee;

int main() {
  const int one = 1;
  auto serve = [&](Address address) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    check(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0, "SO_REUSEADDR");
    check(bind(fd, address.at(), address.bytes) == 0, "bind: errno %d", errno);
    check(listen(fd, 5) == 0, "listen: errno %d", errno);
    return fd;
  };
  int listener = serve(loopback(AF_INET));
  Address address = name_of(listener);
  auto meet = [&] {
    Pair pair;
    pair.client = socket(AF_INET, SOCK_STREAM, 0);
    check(connect(pair.client, address.at(), address.bytes) == 0, "connect: errno %d", errno);
    pair.server = accept(listener, nullptr, nullptr);
    check(pair.server >= 0, "accept: errno %d", errno);
    return pair;
  };
  Pair first = meet();
  ready();
  wait_moved();
  close(listener);
  listener = serve(address);
  Pair second = meet();
  for (const Pair& pair : {first, second}) {
    char c = 0;
    check(send(pair.client, "c", 1, 0) == 1 && recv(pair.server, &c, 1, 0) == 1 && c == 'c',
          "client to server: errno %d", errno);
    check(send(pair.server, "s", 1, 0) == 1 && recv(pair.client, &c, 1, 0) == 1 && c == 's',
          "server to client: errno %d", errno);
  }
  return ok();
}
