// What the kernel tells and does of Unix sockets beyond unix(7).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace godwit::sys {

// The network namespace a socket belongs to, as setns(2) takes it. Needs CAP_NET_ADMIN there.
Result<UniqueFd> netns_of_socket(int socket);

// What a bound socket's name in the file system led to when it was bound, O_PATH: wherever it is
// now, also if it was removed. Not valid: it has no such name. Needs CAP_NET_ADMIN.
Result<UniqueFd> node_of_unix_socket(int socket);

struct PeerCredentials {
  pid_t pid = 0;  // As this node sees it.
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;
};

// SO_PEERCRED and SO_PEERGROUPS; nothing where there is no peer and nobody listens.
Result<std::optional<PeerCredentials>> peer_credentials(int socket);

}  // namespace godwit::sys
