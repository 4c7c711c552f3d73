// One client of init: packets with descriptors, never blocking.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

#include "capsule/init/fail.h"
#include "capsule/init_protocol.h"

namespace godwit::init {

// A packet with its descriptors, which it closes.
struct Packet {
  capsule::Header header{};
  char payload[capsule::payload_bytes_max];
  int fds[capsule::message_fds_max];
  int fd_count = 0;

  void clear();
  void add_fd(int fd) { fds[fd_count++] = fd; }
  int take_fd(int index);
};

struct Connection {
  enum class Sent { done, full, gone };
  enum class Received { packet, nothing, gone };

  int fd = -1;
  bool attached = false;
  bool watching = false;
  bool exit_told = false;
  bool full = false;          // Events wait until it is writable.
  bool answer_waits = false;  // Then no further request is read.
  bool detached_due = false;
  std::uint64_t out_next = 0;  // Output it has been sent.
  std::uint64_t ack_told = 0;  // Input it has been told of.
  Packet* answer = nullptr;    // Storage of its own, for an answer that didn't fit.

  void open(int socket);
  void close();
  Sent send(const capsule::Header& header, const iovec& payload, const int* fds, int fd_count);
  Sent event(capsule::Message type, std::uint64_t a, std::uint64_t b, const iovec& payload);
  Received receive(Packet& out);
};

}  // namespace godwit::init
