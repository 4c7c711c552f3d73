// Which daemon to talk to.
#pragma once

#include <functional>
#include <string>

#include "base/result.h"

namespace godwit::cli {

struct EndpointOptions {
  std::string socket;   // --socket
  std::string cluster;  // --cluster: a local one
  std::string node;     // --node: of the local cluster; n1
};

using Getenv = std::function<const char*(const char*)>;

// First that is given: --socket; --cluster or --node; GODWIT_SOCKET; GODWIT_CLUSTER; the local
// cluster "default" if it is up; this machine's own daemon.
std::string choose_socket(const EndpointOptions& options, const Getenv& environment,
                          const std::function<bool(const std::string&)>& exists);

// Errc::peer_lost if nobody listens there.
Result<void> check_listening(const std::string& socket);

}  // namespace godwit::cli
