// Halves of connections that are shut down, and peers that are gone: what they left is read before
// the end, and one that left without reading has reset the connection.
#include "unix.h"
using namespace tracee;

namespace {

struct Ends {
  explicit Ends(int type) { need(socketpair(AF_UNIX, type, 0, fd) == 0, "socketpair"); }
  int fd[2] = {};
};

std::string shows(int fd) {
  pollfd asked{fd, POLLIN | POLLOUT | POLLRDHUP, 0};
  poll(&asked, 1, 0);
  return std::to_string(asked.revents);
}

void ends(const char* what, int fd) {
  const Received came = receive(fd);
  check(came.bytes == 0, "%s: recv gave %zd, errno %d", what, came.bytes, came.error);
}

void breaks(const char* what, int fd) {
  check(send(fd, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "%s: send: errno %d", what, errno);
}

class Shut {
 public:
  explicit Shut(int type)
      : writing(type), reading(type), both(type), left(type), reset(type), silent(type) {
    for (const Ends& pair : {writing, reading, both, left})
      need(send(pair.fd[0], "left", 4, 0) == 4, "send");
    shutdown(writing.fd[0], SHUT_WR);
    shutdown(reading.fd[0], SHUT_RD);
    shutdown(both.fd[0], SHUT_RDWR);
    close(left.fd[0]);
    need(send(reset.fd[1], "unread", 6, 0) == 6, "send");
    close(reset.fd[0]);
    close(silent.fd[0]);
    for (int fd : all()) before.push_back(shows(fd));
  }
  void check_all() {
    const std::vector<int> now = all();
    for (size_t i = 0; i < now.size(); ++i) same("what poll shows", before[i], shows(now[i]));
    same("left", "left", receive(writing.fd[1]).data);
    ends("writing is shut", writing.fd[1]);
    breaks("writing is shut", writing.fd[0]);
    passes(writing.fd[1], writing.fd[0], "the other way");
    same("left", "left", receive(reading.fd[1]).data);
    ends("reading is shut", reading.fd[0]);
    breaks("reading is shut", reading.fd[1]);
    passes(reading.fd[0], reading.fd[1], "the other way");
    same("left", "left", receive(both.fd[1]).data);
    ends("both are shut", both.fd[1]);
    breaks("both are shut", both.fd[1]);
    same("left", "left", receive(left.fd[1]).data);
    ends("the peer is gone", left.fd[1]);
    breaks("the peer is gone", left.fd[1]);
    same("reset", ECONNRESET, receive(reset.fd[1]).error);
    ends("after a reset", reset.fd[1]);
    ends("the peer is gone", silent.fd[1]);
  }

 private:
  std::vector<int> all() const {
    return {writing.fd[0], writing.fd[1], reading.fd[0], reading.fd[1], both.fd[0],
            both.fd[1],    left.fd[1],    reset.fd[1],   silent.fd[1]};
  }
  Ends writing, reading, both, left, reset, silent;
  std::vector<std::string> before;
};

}  // namespace

int main() {
  Shut streams(SOCK_STREAM), packets(SOCK_SEQPACKET);
  int quiet[2];
  need(socketpair(AF_UNIX, SOCK_DGRAM, 0, quiet) == 0 && send(quiet[0], "left", 4, 0) == 4 &&
           shutdown(quiet[0], SHUT_WR) == 0,
       "datagrams");
  ready();
  wait_moved();
  streams.check_all();
  packets.check_all();
  same("left", "left", receive(quiet[1]).data);
  breaks("datagrams", quiet[0]);
  return ok();
}
