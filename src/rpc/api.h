// The two interfaces that cross process borders, without gRPC: the daemon implements them, `server`
// serves them, `client` implements them over a connection. So a call for a capsule of another node
// is forwarded by calling the same method of another object.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"
#include "wire/api.pb.h"
#include "wire/node.pb.h"

namespace godwit::rpc {

// On whose behalf, and how.
struct Call {
  std::uint32_t uid = 0;
  // By another node, which looked for the capsule: answer for this node only, never ask on.
  bool forwarded = false;
  // True once nobody waits for the answer anymore. Empty: never.
  std::function<bool()> cancelled;

  bool root() const { return uid == 0; }
  bool is_cancelled() const { return cancelled && cancelled(); }
};

// Where a streaming answer goes. `write` blocks while the reader is slow; false: it is gone.
template <typename Message>
class Sink {
 public:
  virtual ~Sink() = default;
  virtual bool write(const Message& message) = 0;
};

// One attached client, as the daemon sees it. `read` and `write` may be called by two threads at a
// time; `cancel` by any, it ends both.
class AttachChannel {
 public:
  virtual ~AttachChannel() = default;
  virtual bool read(api::AttachRequest& request) = 0;
  virtual bool write(const api::AttachReply& reply) = 0;
  virtual void cancel() = 0;
};

class Api {
 public:
  virtual ~Api() = default;
  virtual Result<api::RunReply> run(const Call&, const api::RunRequest&) = 0;
  virtual Result<api::PsReply> ps(const Call&, const api::PsRequest&) = 0;
  virtual Result<api::NodesReply> nodes(const Call&, const api::NodesRequest&) = 0;
  virtual Result<void> logs(const Call&, const api::LogsRequest&, Sink<api::LogsChunk>&) = 0;
  // `open` was read from the channel already. Returns when the attachment has ended.
  virtual Result<void> attach(const Call&, const api::AttachRequest::Open& open,
                              AttachChannel&) = 0;
  virtual Result<api::WaitReply> wait(const Call&, const api::WaitRequest&) = 0;
  virtual Result<api::SignalReply> signal(const Call&, const api::SignalRequest&) = 0;
  virtual Result<api::KillReply> kill(const Call&, const api::KillRequest&) = 0;
  virtual Result<api::FreezeReply> freeze(const Call&, const api::FreezeRequest&) = 0;
  virtual Result<void> migrate(const Call&, const api::MigrateRequest&,
                               Sink<api::MigrateEvent>&) = 0;
  virtual Result<api::CanMigrateReply> can_migrate(const Call&, const api::CanMigrateRequest&) = 0;
  virtual Result<api::HistoryReply> history(const Call&, const api::HistoryRequest&) = 0;
  virtual Result<api::DoctorReply> doctor(const Call&, const api::DoctorRequest&) = 0;
  virtual Result<api::ResolveReply> resolve(const Call&, const api::ResolveRequest&) = 0;
  virtual Result<api::RemoveReply> remove(const Call&, const api::RemoveRequest&) = 0;
};

class NodeApi {
 public:
  virtual ~NodeApi() = default;
  virtual Result<api::NodeInfo> status(const node::StatusRequest&) = 0;
  virtual Result<node::FindReply> find(const node::FindRequest&) = 0;
  virtual Result<node::ClaimNameReply> claim_name(const node::ClaimNameRequest&) = 0;
  virtual Result<node::ReserveReply> reserve(const std::string& peer,
                                             const node::ReserveRequest&) = 0;
  virtual Result<node::ReleaseReply> release(const std::string& peer,
                                             const node::ReleaseRequest&) = 0;
  virtual Result<node::OutcomeReply> outcome(const std::string& peer,
                                             const node::OutcomeRequest&) = 0;
};

}  // namespace godwit::rpc
