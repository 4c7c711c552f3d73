// Unix sockets of a process tree, from outside: what waits in them, and who is connected to whom.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "capture/describe_sockets.h"

namespace godwit::capture {

// Which can't move, in words. Preconditions, here and below: the tree stands still.
Result<std::vector<std::string>> unix_reasons(std::span<const SocketEntry* const> sockets);

// What waits to be read; nothing is taken out. Descriptors that came along are described.
Result<void> describe_unix_content(const SocketEntry& socket, const DescribeOwnFd& describe_own,
                                   image::Socket& out);

// Peers, backlogs, names, halves that are shut down. `described`: by id, of all kinds.
// Errc::busy: somebody waits to be accepted, which can't be put back.
Result<void> connect_unix(std::span<const SocketEntry* const> sockets,
                          std::map<std::uint32_t, image::Socket>& described);

}  // namespace godwit::capture
