// TCP connections of which one side, or both, have said that nothing follows: with and without
// bytes that wait, acknowledged or not.
#include "tcp.h"
using namespace tracee;

namespace {

void check_end(int fd, const char* what) {
  char c;
  const ssize_t n = recv(fd, &c, 1, 0);
  check(n == 0, "%s: recv gave %zd, errno %d", what, n, n < 0 ? errno : 0);
}

void check_flows(int from, int to, const char* what) {
  check(send(from, "more", 4, MSG_NOSIGNAL) == 4, "%s: send: errno %d", what, errno);
  char text[5] = {};
  check(recv(to, text, 4, MSG_WAITALL) == 4, "%s: recv: errno %d", what, errno);
  same(what, "more", text);
}

void check_cannot_send(int fd, const char* what) {
  check(send(fd, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "%s: send: errno %d", what, errno);
}

}  // namespace

int main() {
  Listener listener(AF_INET), listener6(AF_INET6);
  Pair ended(listener), ended6(listener6), with_bytes(listener), blocked(listener, 50'000, 10'000),
      both(listener);
  // FIN_WAIT2 and CLOSE_WAIT.
  need(shutdown(ended.client, SHUT_WR) == 0 && shutdown(ended6.client, SHUT_WR) == 0, "shutdown");
  // The same with bytes in front of the end.
  const std::string data = piece(0, 5'000);
  need(send(with_bytes.server, data.data(), data.size(), 0) == 5'000, "send");
  need(shutdown(with_bytes.server, SHUT_WR) == 0, "shutdown");
  // FIN_WAIT1: the end waits behind bytes for which there is no room.
  const size_t waiting = fill(blocked.client);
  need(shutdown(blocked.client, SHUT_WR) == 0, "shutdown");
  // Both ways, at one's own reading end only.
  need(shutdown(both.client, SHUT_RD) == 0, "shutdown(SHUT_RD)");
  need(eventually([&] {
         return tcp_state(ended.server) == TCP_CLOSE_WAIT &&
                tcp_state(ended.client) == TCP_FIN_WAIT2 &&
                tcp_state(with_bytes.client) == TCP_CLOSE_WAIT;
       }),
       "states %d %d %d", tcp_state(ended.server), tcp_state(ended.client),
       tcp_state(with_bytes.client));
  same("state", TCP_FIN_WAIT1, tcp_state(blocked.client));
  ready();
  wait_moved();
  same("state of who ended", TCP_FIN_WAIT2, tcp_state(ended.client));
  same("state of the other", TCP_CLOSE_WAIT, tcp_state(ended.server));
  check_end(ended.server, "ended");
  check_cannot_send(ended.client, "ended");
  check_flows(ended.server, ended.client, "ended");
  check_end(ended6.server, "ended, IPv6");
  check_flows(ended6.server, ended6.client, "ended, IPv6");
  same("bytes in front of the end", data.size(), read_pieces(with_bytes.client, data.size() + 1));
  check_end(with_bytes.client, "with bytes");
  check_flows(with_bytes.client, with_bytes.server, "with bytes");
  same("bytes that waited", waiting, read_pieces(blocked.server, waiting + 1));
  check_end(blocked.server, "blocked");
  check_flows(blocked.server, blocked.client, "blocked");
  check_end(both.client, "shut for reading");
  check_flows(both.client, both.server, "shut for reading");
  // An end that comes after the move.
  close(ended.server);
  check_end(ended.client, "after the move");
  return ok();
}
