// A netlink socket.
#include <linux/netlink.h>
#include <sys/socket.h>

#include "tracee.h"
using namespace tracee;

int main() {
  int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  sockaddr_nl address = {};
  address.nl_family = AF_NETLINK;
  need(fd >= 0 && bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
  socklen_t length = sizeof address;
  need(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0, "getsockname");
  ready();
  wait_moved();
  sockaddr_nl now = {};
  check(getsockname(fd, reinterpret_cast<sockaddr*>(&now), &length) == 0 &&
            now.nl_pid == address.nl_pid,
        "its port changed");
  return ok();
}
