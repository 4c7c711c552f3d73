// Api and NodeApi over a connection.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "rpc/api.h"
#include "rpc/server.h"

namespace godwit::rpc {

// The client's end of an Attach stream.
class AttachStream {
 public:
  virtual ~AttachStream() = default;
  virtual bool write(const api::AttachRequest& request) = 0;
  virtual bool read(api::AttachReply& reply) = 0;
  virtual void writes_done() = 0;
  virtual void cancel() = 0;
  // After `read` returned false: why.
  virtual Result<void> finish() = 0;
};

// Thread-safe. Connects when first used, and again by itself when the connection was lost.
class ApiClient : public Api {
 public:
  virtual std::unique_ptr<AttachStream> open_attach(const Call& call) = 0;
};

// To the daemon behind a Unix socket; Call::uid isn't sent, the daemon knows.
std::unique_ptr<ApiClient> connect_unix(const std::string& path);

// To another node.
class NodeClient : public NodeApi {
 public:
  virtual ApiClient& api() = 0;
};
// `query` bounds questions (find, status, names); what changes something has longer.
Result<std::unique_ptr<NodeClient>> connect_node(const std::string& name,
                                                 const std::string& address, const TlsFiles& tls,
                                                 std::chrono::milliseconds query);

}  // namespace godwit::rpc
