// TCP connections that nobody reads: bytes wait at the receiver, on their way and, since its window
// is closed, at the sender that never sent them.
#include "tcp.h"
using namespace tracee;

int main() {
  std::vector<std::pair<Pair, size_t>> full;
  for (int family : {AF_INET, AF_INET6}) {
    Listener listener(family);
    for (auto [send_buffer, receive_buffer] :
         {std::pair(0, 0), {200'000, 20'000}, {8'000, 8'000}}) {
      Pair pair(listener, send_buffer, receive_buffer);
      const size_t bytes = fill(pair.client);
      full.emplace_back(pair, bytes);
    }
    close(listener.fd);
  }
  auto queued = [](int fd, unsigned long request) {
    int bytes = 0;
    need(ioctl(fd, request, &bytes) == 0, "ioctl");
    return bytes;
  };
  std::vector<int> unread;
  for (auto& [pair, bytes] : full) unread.push_back(queued(pair.server, FIONREAD));
  ready();
  wait_moved();
  for (size_t i = 0; i < full.size(); ++i)
    check(queued(full[i].first.server, FIONREAD) >= unread[i], "%d bytes unread were %d",
          queued(full[i].first.server, FIONREAD), unread[i]);
  for (auto& [pair, bytes] : full) {
    check(shutdown(pair.client, SHUT_WR) == 0, "shutdown: errno %d", errno);
    same("bytes", bytes, read_pieces(pair.server, bytes + 1));
    check(send(pair.server, "back", 4, 0) == 4, "send: errno %d", errno);
    char text[5] = {};
    check(recv(pair.client, text, 4, MSG_WAITALL) == 4, "recv: errno %d", errno);
    same("answer", "back", text);
  }
  return ok();
}
