// Bytes and messages wait in pairs of Unix sockets, both ways: streams keep their bytes, datagrams
// and packets their borders, empty ones too.
#include "unix.h"
using namespace tracee;

namespace {

const size_t sizes[] = {5, 1, 1000, 0, 60'000, 2, 0, 100'000};

struct Ends {
  explicit Ends(int t) : type(t) { need(socketpair(AF_UNIX, t, 0, fd) == 0, "socketpair"); }
  void put() {
    for (int end : {0, 1}) {
      if (type == SOCK_STREAM) {
        bytes[end] = fill(fd[1 - end]);
        continue;
      }
      for (size_t size : sizes) {
        const std::string message = piece(size + static_cast<size_t>(end), size);
        need(send(fd[1 - end], message.data(), size, 0) == static_cast<ssize_t>(size), "send");
      }
    }
  }
  void check_all() {
    for (int end : {0, 1}) {
      if (type == SOCK_STREAM) {
        same("bytes of a stream", bytes[end], read_pieces(fd[end], bytes[end]));
      } else {
        for (size_t size : sizes) {
          const Received came = receive(fd[end], 200'000);
          same("bytes of a message", static_cast<ssize_t>(size), came.bytes);
          check(came.data == piece(size + static_cast<size_t>(end), size),
                "a message of %zu differs", size);
        }
      }
      const Received more = receive(fd[end]);
      check(more.bytes < 0 && more.error == EAGAIN, "one too many: %zd, errno %d", more.bytes,
            more.error);
    }
    passes(fd[0], fd[1], "there");
    passes(fd[1], fd[0], "and back");
  }
  int type, fd[2] = {};
  size_t bytes[2] = {};
};

}  // namespace

int main() {
  Ends all[] = {Ends(SOCK_STREAM), Ends(SOCK_DGRAM), Ends(SOCK_SEQPACKET)};
  Ends empty[] = {Ends(SOCK_STREAM), Ends(SOCK_DGRAM), Ends(SOCK_SEQPACKET)};
  for (Ends& ends : all) ends.put();
  ready();
  wait_moved();
  for (Ends& ends : all) ends.check_all();
  for (Ends& ends : empty) passes(ends.fd[0], ends.fd[1], "first");
  return ok();
}
