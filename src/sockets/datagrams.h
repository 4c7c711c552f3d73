// Sockets of datagrams (UDP): what waits to be read goes along, though nobody may rely on it.
#pragma once

#include "base/result.h"
#include "image/image.pb.h"

namespace godwit::sockets {

// Nothing is taken out.
Result<void> describe_datagrams(int socket, image::Socket& out);

// `socket`: a new one with its options set. Bound, connected and filled.
Result<void> restore_datagrams(int socket, int netns, const image::Socket& image);

}  // namespace godwit::sockets
