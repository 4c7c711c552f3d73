// A bound UDP socket with a datagram in its queue.
#include <netinet/in.h>
#include <sys/socket.h>

#include "tracee.h"
using namespace tracee;

int main() {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  need(bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0 &&
           getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0,
       "bind");
  need(sendto(fd, "datagram", 8, 0, reinterpret_cast<sockaddr*>(&address), length) == 8, "sendto");
  ready();
  wait_moved();
  sockaddr_in now = {};
  check(getsockname(fd, reinterpret_cast<sockaddr*>(&now), &length) == 0 &&
            now.sin_port == address.sin_port,
        "the port changed");
  char text[9] = {};
  check(recv(fd, text, 8, MSG_DONTWAIT) == 8, "recv: errno %d", errno);
  same("datagram", "datagram", text);
  return ok();
}
