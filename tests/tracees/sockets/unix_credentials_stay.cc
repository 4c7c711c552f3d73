// SO_PEERCRED says who connected and who listens, across processes; messages say who sent them.
#include <grp.h>
#include <sys/wait.h>

#include "unix.h"
using namespace tracee;

namespace {

std::string peer_of(int fd) {
  ucred peer{};
  socklen_t bytes = sizeof peer;
  check(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0, "SO_PEERCRED: errno %d",
        errno);
  gid_t groups[32];
  socklen_t group_bytes = sizeof groups;
  std::string text =
      std::to_string(peer.pid) + ":" + std::to_string(peer.uid) + ":" + std::to_string(peer.gid);
  if (getsockopt(fd, SOL_SOCKET, 59 /* SO_PEERGROUPS */, groups, &group_bytes) == 0)
    for (size_t i = 0; i < group_bytes / sizeof(gid_t); ++i)
      text += "," + std::to_string(groups[i]);
  return text;
}

std::string sender_of(const Received& came) {
  if (!came.has_credentials) return "none";
  return std::to_string(came.credentials.pid) + ":" + std::to_string(came.credentials.uid) + ":" +
         std::to_string(came.credentials.gid);
}

// As messages say it: peers are told the effective ones.
std::string myself() {
  return std::to_string(getpid()) + ":" + std::to_string(getuid()) + ":" + std::to_string(getgid());
}

void ask_for_credentials(int fd) {
  const int one = 1;
  need(setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &one, sizeof one) == 0, "SO_PASSCRED");
}

}  // namespace

int main() {
  const std::string name = "@godwit-credentials-" + std::to_string(getpid());
  const int listener = unix_listener(SOCK_STREAM, name);
  int shared[2], early[2], stream[2], unasked[2];
  for (auto* pair : {&shared, &early, &stream, &unasked})
    need(socketpair(AF_UNIX, pair == &stream ? SOCK_STREAM : SOCK_DGRAM, 0, *pair) == 0,
         "socketpair");
  need(send(early[0], "early", 5, 0) == 5, "send");
  for (int fd : {shared[1], early[1], stream[1]}) ask_for_credentials(fd);
  const pid_t child = fork();
  if (child == 0) {
    if (geteuid() == 0) {
      const gid_t groups[] = {77, 78};
      need(setgroups(2, groups) == 0 && setresgid(1234, 1235, 0) == 0 &&
               setresuid(4321, 4322, 0) == 0,
           "setresuid");
    }
    const int client = unix_socket(SOCK_STREAM);
    need(connect_to(client, name) == 0, "connect");
    const std::string me = myself();
    need(send(shared[0], me.data(), me.size(), 0) > 0 && send(stream[0], "child", 5, 0) == 5,
         "send");
    const std::string before = peer_of(client);
    char c = 0;
    recv(client, &c, 1, 0);
    _exit(peer_of(client) == before && c == 'g' ? 0 : 1);
  }
  const int accepted = accept(listener, nullptr, nullptr);
  need(accepted >= 0, "accept");
  need(send(shared[0], "parent", 6, 0) == 6, "send");
  pollfd waits{shared[1], POLLIN, 0};
  need(poll(&waits, 1, -1) == 1, "poll");
  need(eventually([&] {
         int bytes = 0;
         return ioctl(stream[1], FIONREAD, &bytes) == 0 && bytes == 5;
       }),
       "nothing came");
  need(send(stream[0], "parent", 6, 0) == 6 && send(stream[0], "!", 1, 0) == 1, "send");
  need(send(unasked[0], "unasked", 7, 0) == 7, "send");
  const std::string before[] = {peer_of(listener), peer_of(accepted), peer_of(shared[0]),
                                peer_of(stream[1])};

  ready();
  wait_moved();

  same("who listens", before[0], peer_of(listener));
  same("who connected", before[1], peer_of(accepted));
  same("who made the pair", before[2], peer_of(shared[0]));
  same("who made the stream", before[3], peer_of(stream[1]));
  std::string child_is;
  for (int i = 0; i < 2; ++i) {
    const Received came = receive(shared[1]);
    if (came.data == "parent") {
      same("the parent's message", myself(), sender_of(came));
    } else {
      child_is = came.data;
      same("the child's message", came.data, sender_of(came));
    }
  }
  same("a message before it was asked for", "0:65534:65534", sender_of(receive(early[1])));
  Received came = receive(stream[1]);
  same("pieces of two processes", "child", came.data);
  same("who wrote the first", child_is, sender_of(came));
  came = receive(stream[1]);
  same("the second piece", "parent!", came.data);
  same("who wrote it", myself(), sender_of(came));
  same("not asked", "none", sender_of(receive(unasked[1])));
  check(send(accepted, "g", 1, 0) == 1, "send: errno %d", errno);
  int status = -1;
  check(waitpid(child, &status, 0) == child && status == 0, "the child: %#x", status);
  return ok();
}
