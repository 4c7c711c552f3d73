// Two processes and two threads send each other as much as goes through, in streams and packets.
#include <sys/wait.h>

#include "unix.h"
using namespace tracee;

namespace {

constexpr size_t chunk = 3000;

// Until the other end shuts down.
size_t receive_all(int fd) {
  size_t came = 0;
  std::string buffer(chunk, '\0');
  for (ssize_t n; (n = recv(fd, buffer.data(), buffer.size(), 0)) != 0;) {
    if (!check(n > 0, "recv: errno %d", errno)) break;
    if (!check(buffer.substr(0, static_cast<size_t>(n)) == piece(came, static_cast<size_t>(n)),
               "bytes from %zu on are wrong", came))
      break;
    came += static_cast<size_t>(n);
  }
  return came;
}

size_t send_until(int fd, const std::atomic<bool>& stop) {
  size_t done = 0;
  while (!stop) {
    const std::string data = piece(done, chunk);
    const ssize_t n = send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    if (!check(n > 0, "send: errno %d", errno)) break;
    done += static_cast<size_t>(n);
  }
  shutdown(fd, SHUT_WR);
  return done;
}

// The child sends back whatever comes.
void echo(int fd) {
  std::string buffer(chunk, '\0');
  for (ssize_t n; (n = recv(fd, buffer.data(), buffer.size(), 0)) > 0;)
    if (send(fd, buffer.data(), static_cast<size_t>(n), MSG_NOSIGNAL) != n) _exit(2);
  _exit(failures == 0 ? 0 : 1);
}

}  // namespace

int main() {
  int across[2];
  need(socketpair(AF_UNIX, SOCK_STREAM, 0, across) == 0, "socketpair");
  const pid_t child = fork();
  if (child == 0) {
    close(across[0]);
    echo(across[1]);
  }
  close(across[1]);
  int streams[2], packets[2];
  need(socketpair(AF_UNIX, SOCK_STREAM, 0, streams) == 0 &&
           socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets) == 0,
       "socketpair");
  std::atomic<bool> stop{false};
  size_t sent[3] = {}, came[3] = {};
  std::thread threads[] = {
      std::thread([&] { sent[0] = send_until(streams[0], stop); }),
      std::thread([&] { came[0] = receive_all(streams[1]); }),
      std::thread([&] { sent[1] = send_until(packets[0], stop); }),
      std::thread([&] { came[1] = receive_all(packets[1]); }),
      std::thread([&] { sent[2] = send_until(across[0], stop); }),
      std::thread([&] { came[2] = receive_all(across[0]); }),
  };
  ready();
  wait_moved();
  stop = true;
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 3; ++i) {
    check(sent[i] > 0, "nothing was sent");
    same("bytes", sent[i], came[i]);
  }
  int status = -1;
  check(waitpid(child, &status, 0) == child && status == 0, "child: status %#x", status);
  return ok();
}
