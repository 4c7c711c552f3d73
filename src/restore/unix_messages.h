// A message, or a piece of a stream, that waits in a Unix socket: sent again as it was.
#pragma once

#include <string>

#include "image/image.pb.h"
#include "restore/socket_makers.h"
#include "restore/unix_sockets.h"

namespace godwit::restore {

// `address`: null where the sender is connected.
Result<void> send_message(int sender, const image::Message& message, const std::string* address,
                          const OpenedFiles& opened, const FindSkeleton& skeletons);

}  // namespace godwit::restore
