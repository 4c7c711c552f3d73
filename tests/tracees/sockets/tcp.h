// TCP connections within a program, for the tracees of this folder.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "tracee.h"

namespace tracee {

struct Address {
  sockaddr_storage storage{};
  socklen_t bytes = 0;
  sockaddr* at() { return reinterpret_cast<sockaddr*>(&storage); }
};

inline Address loopback(int family, uint16_t port = 0) {
  Address address;
  address.storage.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET) {
    auto& in = reinterpret_cast<sockaddr_in&>(address.storage);
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    in.sin_port = port;
    address.bytes = sizeof in;
  } else {
    auto& in = reinterpret_cast<sockaddr_in6&>(address.storage);
    in.sin6_addr = in6addr_loopback;
    in.sin6_port = port;
    address.bytes = sizeof in;
  }
  return address;
}

inline Address name_of(int fd, bool peer = false) {
  Address address;
  address.bytes = sizeof address.storage;
  need((peer ? getpeername : getsockname)(fd, address.at(), &address.bytes) == 0,
       "name of a socket");
  return address;
}

inline std::string bytes_of(const Address& address) {
  return std::string(reinterpret_cast<const char*>(&address.storage), address.bytes);
}

struct Listener {
  explicit Listener(int family) : fd(socket(family, SOCK_STREAM, 0)) {
    Address here = loopback(family);
    need(fd >= 0 && bind(fd, here.at(), here.bytes) == 0 && listen(fd, 16) == 0, "listen");
    address = name_of(fd);
  }
  int fd;
  Address address;
};

struct Pair {
  Pair() = default;
  explicit Pair(Listener& listener, int send_buffer = 0, int receive_buffer = 0) {
    client = socket(listener.address.storage.ss_family, SOCK_STREAM, 0);
    need(client >= 0, "socket");
    if (send_buffer != 0)
      need(setsockopt(client, SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer) == 0,
           "SO_SNDBUF");
    if (receive_buffer != 0)
      need(setsockopt(listener.fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer) ==
               0,
           "SO_RCVBUF");
    need(connect(client, listener.address.at(), listener.address.bytes) == 0, "connect");
    server = accept(listener.fd, nullptr, nullptr);
    need(server >= 0, "accept");
  }
  int client = -1, server = -1;
};

inline int tcp_state(int fd) {
  tcp_info info{};
  socklen_t bytes = sizeof info;
  return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) == 0 ? info.tcpi_state : -1;
}

// Bytes that tell where in a stream they are.
inline std::string piece(uint64_t from, size_t bytes) {
  std::string out(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i)
    out[i] = static_cast<char>(mix((from + i) / 8) >> ((from + i) % 8 * 8));
  return out;
}

// Writes as much as fits; how much that was.
inline size_t fill(int fd) {
  size_t done = 0;
  for (int idle = 0; idle < 20;) {
    const std::string data = piece(done, 30'000);
    const ssize_t n = send(fd, data.data(), data.size(), MSG_DONTWAIT);
    need(n > 0 || errno == EAGAIN, "send");
    if (n > 0) done += static_cast<size_t>(n), idle = 0;
    if (n < 0) ++idle, usleep(1000);
  }
  return done;
}

// Reads to the end of the stream, or `bytes`; how many were as `piece` made them.
inline size_t read_pieces(int fd, size_t bytes) {
  size_t came = 0;
  std::string buffer(20'000, '\0');
  while (came < bytes) {
    const ssize_t n = recv(fd, buffer.data(), std::min(buffer.size(), bytes - came), 0);
    if (n <= 0) {
      check(n == 0, "recv: errno %d", errno);
      break;
    }
    if (!check(buffer.substr(0, static_cast<size_t>(n)) == piece(came, static_cast<size_t>(n)),
               "bytes from %zu on are wrong", came))
      break;
    came += static_cast<size_t>(n);
  }
  return came;
}

}  // namespace tracee
