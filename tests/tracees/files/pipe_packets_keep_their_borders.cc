// O_DIRECT pipes: each write is a packet, and so is each read. In one pipe packets and plain bytes
// are mixed; another is full of packets.
#include "tracee.h"
using namespace tracee;

namespace {

struct Piece {
  std::string data;
  bool packet;
};

void put(int fd, const Piece& piece) {
  need(fcntl(fd, F_SETFL, piece.packet ? O_DIRECT : 0) == 0, "F_SETFL");
  need(write(fd, piece.data.data(), piece.data.size()) == static_cast<ssize_t>(piece.data.size()),
       "write");
}

void expect(int fd, const char* what, const std::string& wanted, size_t asked = 65536) {
  std::string got(asked, '\0');
  ssize_t n = read(fd, got.data(), got.size());
  got.resize(n < 0 ? 0 : static_cast<size_t>(n));
  check(got == wanted, "%s: %zd bytes, expected %zu", what, n, wanted.size());
}

}  // namespace

int main() {
  int mixed[2], full[2], small[2];
  need(pipe(mixed) == 0 && pipe2(full, O_DIRECT) == 0 && pipe2(small, O_DIRECT) == 0, "pipe");
  // The kernel adds a packet to plain bytes in front of it where their page has room for both.
  const std::string page(4096, 'p'), most(4090, 'm'), ten(10, 't');
  for (const Piece& piece :
       {Piece{most, false}, Piece{ten, true}, Piece{page, true}, Piece{"x", true},
        Piece{"more plain", false}, Piece{page, true}, Piece{"y", true}})
    put(mixed[1], piece);
  expect(mixed[0], "the start of the plain bytes", most.substr(90), 4000);
  int count = 0;
  need(fcntl(full[1], F_SETFL, O_DIRECT | O_NONBLOCK) == 0, "F_SETFL");
  while (write(full[1], "0123456789", static_cast<size_t>(count % 10 + 1)) > 0) ++count;
  need(errno == EAGAIN && count > 1, "writes until it is full");
  put(small[1], {"one packet", true});
  ready();
  wait_moved();
  expect(mixed[0], "the rest of the plain bytes", most.substr(4000), 90);
  expect(mixed[0], "the start of a packet", "tt", 2);
  expect(mixed[0], "large packet", page);
  expect(mixed[0], "packet of one byte", "x");
  // A read that has room for a packet behind plain bytes gets both.
  expect(mixed[0], "plain bytes and a packet", "more plain" + page);
  expect(mixed[0], "last packet of one byte", "y");
  check(write(full[1], "x", 1) == -1 && errno == EAGAIN, "the full one has room: errno %d", errno);
  for (int i = 0; i < count; ++i)
    expect(full[0], "packet", std::string("0123456789", static_cast<size_t>(i % 10 + 1)));
  expect(small[0], "the start of a packet", "one", 3);
  pollfd asked = {small[0], POLLIN, 0};
  same("the rest of the packet is gone", 0, poll(&asked, 1, 0));
  same("F_GETFL", O_WRONLY | O_DIRECT | O_NONBLOCK, fcntl(full[1], F_GETFL));
  return ok();
}
