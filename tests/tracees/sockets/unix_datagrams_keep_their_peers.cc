// Datagram sockets with names and without, connected one way, both ways and to one that is gone;
// what waits in them tells who sent it, also of senders that are gone.
#include "unix.h"
using namespace tracee;

int main() {
  Scratch scratch;
  const std::string own = "@godwit-datagrams-" + std::to_string(getpid());
  const std::string path = scratch.path("server"), client_path = scratch.path("client"),
                    gone_path = scratch.path("gone");
  const int server = unix_socket(SOCK_DGRAM, path), other = unix_socket(SOCK_DGRAM, own);
  const int client = unix_socket(SOCK_DGRAM, client_path), nameless = unix_socket(SOCK_DGRAM);
  auto send_to = [&](int fd, const std::string& text, const std::string& to) {
    Address address = unix_name(to);
    need(sendto(fd, text.data(), text.size(), 0, address.at(), address.bytes) ==
             static_cast<ssize_t>(text.size()),
         "sendto(%s)", to.c_str());
  };
  send_to(client, "one", path);
  send_to(nameless, "two", path);
  send_to(other, "", path);
  const int passing = unix_socket(SOCK_DGRAM, gone_path);
  send_to(passing, "four", path);
  close(passing);
  need(connect_to(client, path) == 0 && connect_to(nameless, own) == 0, "connect");
  send_to(server, "answer", client_path);

  // Two that are each other's peers, after a message from a third.
  const int left = unix_socket(SOCK_DGRAM, own + "-left"), right = unix_socket(SOCK_DGRAM);
  send_to(other, "before", own + "-left");
  need(connect_to(right, own + "-left") == 0, "connect");
  Address autobound = unix_name(own + "-right");
  need(bind(right, autobound.at(), autobound.bytes) == 0 && connect_to(left, own + "-right") == 0,
       "bind, connect");
  for (int i = 0; i < 30; ++i)
    need(send(right, std::to_string(i).data(), std::to_string(i).size(), MSG_DONTWAIT) > 0, "send");

  // To itself, to one that is gone, and a pair of which one end lets go of the other.
  const int self = unix_socket(SOCK_DGRAM, own + "-self");
  need(connect_to(self, own + "-self") == 0 && send(self, "mine", 4, 0) == 4, "to itself");
  const int forsaken = unix_socket(SOCK_DGRAM), goes = unix_socket(SOCK_DGRAM, own + "-goes");
  need(connect_to(forsaken, own + "-goes") == 0, "connect");
  close(goes);
  const int anew = unix_socket(SOCK_DGRAM, own + "-goes"), follows = unix_socket(SOCK_DGRAM);
  need(connect_to(follows, own + "-goes") == 0 && send(follows, "anew", 4, 0) == 4, "connect");
  int pair[2];
  need(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0, "socketpair");
  sockaddr nobody{};
  need(connect(pair[1], &nobody, sizeof nobody) == 0, "connect(AF_UNSPEC)");
  need(send(pair[0], "one way", 7, 0) == 7, "send");

  ready();
  wait_moved();

  const std::pair<std::string, std::string> waits[] = {
      {"one", client_path}, {"two", ""}, {"", own}, {"four", gone_path}};
  for (const auto& [text, from] : waits) {
    const Received came = receive(server);
    check(came.bytes >= 0, "recv: errno %d", came.error);
    same("message", text, came.data);
    same("its sender", from, came.from);
  }
  same("no more", EAGAIN, receive(server).error);
  same("answer", "answer", receive(client).data);
  same("client's peer", path, unix_name_of(client, true));
  passes(client, server, "again");
  passes(nameless, other, "nameless");
  same("server has no peer", "-", unix_name_of(server, true));
  send_to(server, "to the client", client_path);
  same("from the server", path, receive(client).from);

  same("before", "before", receive(left).data);
  for (int i = 0; i < 30; ++i) same("number", std::to_string(i), receive(left).data);
  passes(left, right, "left");
  passes(right, left, "right");
  same("left's peer", own + "-right", unix_name_of(left, true));
  Address to_left = unix_name(own + "-left");
  check(sendto(other, "x", 1, 0, to_left.at(), to_left.bytes) < 0 && errno == EPERM,
        "somebody else could send to it: errno %d", errno);

  same("mine", "mine", receive(self).data);
  passes(self, self, "once more");
  same("forsaken's peer", own + "-goes", unix_name_of(forsaken, true));
  check(send(forsaken, "x", 1, 0) < 0 && errno == ECONNREFUSED, "nobody refused: errno %d", errno);
  same("anew", "anew", receive(anew).data);
  passes(follows, anew, "anew again");
  same("one way", "one way", receive(pair[1]).data);
  passes(pair[0], pair[1], "one way again");
  same("no way back", "-", unix_name_of(pair[1], true));
  return ok();
}
