// Serves Api on a Unix socket for people and Api + NodeApi on TCP for nodes.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "rpc/api.h"

namespace godwit::rpc {

struct TlsFiles {
  std::string ca;
  std::string certificate;  // Common name and a DNS alternative name: the node's name.
  std::string key;
};

struct UnixLimits {
  int connections_per_user = 256;
  int calls_per_user = 256;       // At a time; each holds a thread.
  std::chrono::seconds idle{60};  // After this a user's server is dropped.
};

// gRPC doesn't say who is at the other end of a Unix socket. So connections are accepted here,
// their peer is read with SO_PEERCRED, and the descriptor is given to a grpc::Server that serves
// this uid and no other: a service object can't be asked by anybody but its user.
class UnixServer {
 public:
  // Binds (replacing a stale socket) with mode 0666 and serves until destroyed.
  static Result<std::unique_ptr<UnixServer>> start(const std::string& path, Api& api,
                                                   UnixLimits limits);
  virtual ~UnixServer() = default;
  virtual int servers() const = 0;  // One per uid that was here lately.
};

// Peers must present a certificate of our CA whose common name is in `peers`.
class NodeServer {
 public:
  static Result<std::unique_ptr<NodeServer>> start(const std::string& address, const TlsFiles& tls,
                                                   std::vector<std::string> peers, Api& api,
                                                   NodeApi& node_api);
  virtual ~NodeServer() = default;
  virtual int port() const = 0;
};

}  // namespace godwit::rpc
