// Sockets of netlink(7) on which nothing is going on: what the program has asked has been answered,
// and it has read that.
#pragma once

#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "image/image.pb.h"

namespace godwit::sockets {

// Why one of this protocol can't move; empty: it can.
std::string reason_against_netlink(int protocol);

// Multicast groups; the rest is the same for all kinds of sockets.
Result<void> describe_netlink(int socket, image::Socket& out);

// `socket`: a new one with its options set.
Result<void> restore_netlink(int socket, const image::Socket& image);

}  // namespace godwit::sockets
