// What waits to be read in a Unix socket, without taking anything out.
#pragma once

#include "capture/describe_sockets.h"

namespace godwit::capture {

// Fills out.queue and out.unix_end.reset. Preconditions: nobody reads or writes it meanwhile.
// Errc::busy: an error stands before what waits, and a look would take it.
Result<void> read_unix_queue(const SocketEntry& socket, const Inside& inside, image::Socket& out);

// Messages, or somebody who waits to be accepted.
Result<bool> has_unread(int socket);

// Urgent data (MSG_OOB) isn't shown in its place by any look.
Result<bool> has_urgent_data(int socket);

}  // namespace godwit::capture
