// One TCP connection as an image, and back.
#pragma once

#include "base/result.h"
#include "base/unique_fd.h"
#include "image/image.pb.h"

namespace godwit::sockets {

// Preconditions: it is in repair mode, and no packet reaches it.
Result<void> describe_connection(int socket, image::Socket& out);

// Makes `socket`, a new one in the right network with all its options but buffer sizes set, the
// connection of the image. It is left in repair mode. Preconditions: no packet leaves for the
// network, and none comes in; lo is up. Of a connection that the peer, or both, have ended at their
// side, `netns` is where the packets are made that say so.
Result<void> restore_connection(int socket, int netns, const image::Socket& image);

}  // namespace godwit::sockets
