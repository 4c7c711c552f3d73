// Datagrams wait in UDP sockets of IPv4 and IPv6, connected and not, with their senders' addresses
// and their borders; an empty one is one, too.
#include "tcp.h"
using namespace tracee;

namespace {

struct Queue {
  explicit Queue(int family, bool connected)
      : receiver(socket(family, SOCK_DGRAM, 0)), sender(socket(family, SOCK_DGRAM, 0)) {
    for (int fd : {receiver, sender}) {
      Address here = loopback(family);
      need(bind(fd, here.at(), here.bytes) == 0, "bind");
    }
    to = name_of(receiver), from = name_of(sender);
    if (connected) need(connect(receiver, from.at(), from.bytes) == 0, "connect");
    for (size_t bytes : {5UL, 1UL, 1400UL, 9000UL, 0UL, 60'000UL}) {
      datagrams.push_back(piece(bytes, bytes));
      need(sendto(sender, datagrams.back().data(), bytes, 0, to.at(), to.bytes) ==
               static_cast<ssize_t>(bytes),
           "sendto");
    }
  }
  void check_all() {
    std::string buffer(65'536, '\0');
    for (const std::string& datagram : datagrams) {
      Address came;
      came.bytes = sizeof came.storage;
      const ssize_t n =
          recvfrom(receiver, buffer.data(), buffer.size(), MSG_DONTWAIT, came.at(), &came.bytes);
      if (!check(n >= 0, "recvfrom: errno %d", errno)) return;
      check(buffer.substr(0, static_cast<size_t>(n)) == datagram, "a datagram of %zu bytes has %zd",
            datagram.size(), n);
      same("sender", bytes_of(from), bytes_of(came));
    }
    check(recv(receiver, buffer.data(), buffer.size(), MSG_DONTWAIT) < 0 && errno == EAGAIN,
          "one too many");
    check(sendto(sender, "more", 4, 0, to.at(), to.bytes) == 4, "sendto: errno %d", errno);
    check(recv(receiver, buffer.data(), buffer.size(), 0) == 4, "recv: errno %d", errno);
  }
  int receiver, sender;
  Address to, from;
  std::vector<std::string> datagrams;
};

}  // namespace

int main() {
  Queue queues[] = {Queue(AF_INET, false), Queue(AF_INET, true), Queue(AF_INET6, false),
                    Queue(AF_INET6, true)};
  ready();
  wait_moved();
  for (Queue& queue : queues) queue.check_all();
  return ok();
}
