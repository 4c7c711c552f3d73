// Options of sockets, one by one and as a list that is read here and set there. What has a meaning
// of its own while a connection is made or repaired (TCP_REPAIR, TCP_ULP...) isn't in it.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace godwit::sys {

struct SocketOption {
  int level = 0, name = 0;
  std::string value;  // As getsockopt gives it.
};

Result<int> int_socket_option(int socket, int level, int name);
Result<void> set_int_socket_option(int socket, int level, int name, int value);

// Whether poll(2) shows this event (POLLIN...) now.
bool polls(int socket, short event);

// Every option known here that this socket has.
Result<std::vector<SocketOption>> socket_options(int socket);

// Sets those that differ. Buffer sizes become what they were, whatever the machine's limits.
// Preconditions: what some need of privilege (CAP_NET_ADMIN) is there.
Result<void> set_socket_options(int socket, std::span<const SocketOption> options);

// What has to wait until queues are filled and addresses bound.
bool is_late_option(const SocketOption& option);

// SO_RCVBUF or SO_SNDBUF, as getsockopt gives it.
Result<void> set_buffer_size(int socket, int option, int bytes);

}  // namespace godwit::sys
