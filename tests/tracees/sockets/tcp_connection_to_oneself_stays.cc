// A TCP connection over loopback, a thread in accept and one in recv.
#include <netinet/in.h>
#include <sys/socket.h>

#include "calls.h"
using namespace tracee;

int main() {
  int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  need(bind(listener, reinterpret_cast<sockaddr*>(&address), length) == 0 &&
           listen(listener, 5) == 0,
       "listen");
  need(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) == 0, "getsockname");
  need(connect(client, reinterpret_cast<sockaddr*>(&address), length) == 0, "connect");
  int server = accept(listener, nullptr, nullptr);
  need(server >= 0 && send(client, "queued", 6, 0) == 6, "accept, send");
  BlockedCall accepting("accept", SYS_accept, [&]() -> long {
    return accept(listener, nullptr, nullptr) >= 0 ? 0 : -errno;
  });
  char c = 0;
  BlockedCall receiving("recv", SYS_recvfrom,
                        [&]() -> long { return sys_result(recv(client, &c, 1, 0)); });
  ready();
  wait_moved();
  accepting.check_still_blocked();
  receiving.check_still_blocked();
  char text[7] = {};
  check(recv(server, text, 6, 0) == 6, "recv: errno %d", errno);
  same("queue", "queued", text);
  check(send(server, "s", 1, 0) == 1, "send: errno %d", errno);
  receiving.check_returns(1);
  int another = socket(AF_INET, SOCK_STREAM, 0);
  check(connect(another, reinterpret_cast<sockaddr*>(&address), length) == 0, "connect: errno %d",
        errno);
  accepting.check_returns(0);
  return ok();
}
