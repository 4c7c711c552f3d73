// Sockets of datagrams: what waits to be read goes along with UDP, though nobody may rely on it.
#pragma once

#include "base/result.h"
#include "image/image.pb.h"

namespace godwit::sockets {

// Of UDP. Nothing is taken out.
Result<void> describe_datagrams(int socket, image::Socket& out);

// `socket`: a new one with its options set. Bound, connected and filled.
Result<void> restore_datagrams(int socket, int netns, const image::Socket& image);

}  // namespace godwit::sockets
