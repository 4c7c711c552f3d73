// Unix sockets of a process tree, from outside: who is connected to whom, and by which name.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "capture/describe_sockets.h"

namespace godwit::capture {

// Which can't move, in words. Preconditions, here and below: the tree stands still.
Result<std::vector<std::string>> unix_reasons(std::span<const SocketEntry* const> sockets);

// Peers, backlogs, names, halves that are shut down. `described`: by id, of all kinds.
// Errc::busy: somebody waits to be accepted and has sent something already, which nobody can read.
Result<void> connect_unix(std::span<const SocketEntry* const> sockets, const Inside& inside,
                          std::map<std::uint32_t, image::Socket>& described);

}  // namespace godwit::capture
