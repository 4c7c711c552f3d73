#include "cli/endpoint.h"

#include <sys/socket.h>
#include <sys/un.h>

#include "base/unique_fd.h"
#include "local/local_cluster.h"

namespace godwit::cli {

std::string choose_socket(const EndpointOptions& options, const Getenv& environment,
                          const std::function<bool(const std::string&)>& exists) {
  const auto variable = [&](const char* name) {
    const char* value = environment(name);
    return std::string(value == nullptr ? "" : value);
  };
  const std::string node = options.node.empty() ? "n1" : options.node;
  if (!options.socket.empty()) return options.socket;
  std::string cluster = options.cluster;
  if (cluster.empty() && !options.node.empty()) {
    cluster = variable("GODWIT_CLUSTER");
    if (cluster.empty()) cluster = "default";
  }
  if (cluster.empty()) {
    if (auto socket = variable("GODWIT_SOCKET"); !socket.empty()) return socket;
    cluster = variable("GODWIT_CLUSTER");
  }
  if (!cluster.empty()) return local::daemon_socket(cluster, NodeId{node});
  const std::string first = local::daemon_socket("default", NodeId{node});
  return exists(first) ? first : "/run/godwit/godwitd.sock";
}

Result<void> check_listening(const std::string& socket) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket.size() >= sizeof address.sun_path) {
    return make_error(Errc::invalid, "socket path {} is too long", socket);
  }
  socket.copy(address.sun_path, socket.size());
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return os_error("socket(AF_UNIX)");
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return make_error(Errc::peer_lost, "{}",
                      os_error(fmt::format("no godwitd at {}", socket)).what());
  }
  return {};
}

}  // namespace godwit::cli
