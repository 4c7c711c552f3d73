// What people and nodes may ask of this node: finds the capsule's owner, checks who asks, and calls
// what does the work.
//
// Any node answers for any capsule. A request is done here if the capsule is here, else it is
// passed on to the node that says it has it; a forwarded request is never passed on again. A
// capsule that moves between the question and the request is looked for again.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "daemon/history.h"
#include "daemon/host.h"
#include "daemon/migrations.h"
#include "daemon/node_monitor.h"
#include "daemon/peers.h"
#include "rpc/api.h"

namespace godwit::daemon {

class Service final : public rpc::Api, public rpc::NodeApi {
 public:
  Service(const Config& config, Host& host, Migrations& migrations, Peers& peers, History& history,
          NodeMonitor& monitor)
      : config_(config),
        host_(host),
        migrations_(migrations),
        peers_(peers),
        history_(history),
        monitor_(monitor) {}

  Result<api::RunReply> run(const rpc::Call&, const api::RunRequest&) override;
  Result<api::PsReply> ps(const rpc::Call&, const api::PsRequest&) override;
  Result<api::NodesReply> nodes(const rpc::Call&, const api::NodesRequest&) override;
  Result<void> logs(const rpc::Call&, const api::LogsRequest&, rpc::Sink<api::LogsChunk>&) override;
  Result<void> attach(const rpc::Call&, const api::AttachRequest::Open&,
                      rpc::AttachChannel&) override;
  Result<api::WaitReply> wait(const rpc::Call&, const api::WaitRequest&) override;
  Result<api::SignalReply> signal(const rpc::Call&, const api::SignalRequest&) override;
  Result<api::KillReply> kill(const rpc::Call&, const api::KillRequest&) override;
  Result<api::FreezeReply> freeze(const rpc::Call&, const api::FreezeRequest&) override;
  Result<void> migrate(const rpc::Call&, const api::MigrateRequest&,
                       rpc::Sink<api::MigrateEvent>&) override;
  Result<api::CanMigrateReply> can_migrate(const rpc::Call&,
                                           const api::CanMigrateRequest&) override;
  Result<api::HistoryReply> history(const rpc::Call&, const api::HistoryRequest&) override;
  Result<api::DoctorReply> doctor(const rpc::Call&, const api::DoctorRequest&) override;
  Result<api::ResolveReply> resolve(const rpc::Call&, const api::ResolveRequest&) override;
  Result<api::RemoveReply> remove(const rpc::Call&, const api::RemoveRequest&) override;

  Result<api::NodeInfo> status(const node::StatusRequest&) override;
  Result<node::FindReply> find(const node::FindRequest&) override;
  Result<node::ClaimNameReply> claim_name(const node::ClaimNameRequest&) override;
  Result<node::ReserveReply> reserve(const std::string& peer, const node::ReserveRequest&) override;
  Result<node::ReleaseReply> release(const std::string& peer, const node::ReleaseRequest&) override;
  Result<node::OutcomeReply> outcome(const std::string& peer, const node::OutcomeRequest&) override;

 private:
  // Where a capsule is: here (`capsule`) or there (`peer`).
  struct Place {
    HostedPtr capsule;
    rpc::NodeClient* peer = nullptr;
  };
  Result<Place> locate(const rpc::Call& call, const std::string& reference);
  Result<Place> locate_once(const rpc::Call& call, const std::string& reference, bool& arriving);

  // Does `here` or `there`, wherever the capsule is, and again where it moves in between.
  template <typename Reply>
  Result<Reply> route(const rpc::Call& call, const std::string& reference,
                      const std::function<Result<Reply>(const HostedPtr&)>& here,
                      const std::function<Result<Reply>(rpc::Api&)>& there);

  Result<api::RunReply> run_here(const rpc::Call& call, const api::RunRequest& request);
  Result<Account> account_for(const rpc::Call& call, const std::string& user);
  Result<bool> claim_everywhere(const std::string& name, const std::string& ip,
                                const std::string& id, bool& ip_taken);
  Result<std::string> next_address(std::uint32_t& prefix_len);

  const Config& config_;
  Host& host_;
  Migrations& migrations_;
  Peers& peers_;
  History& history_;
  NodeMonitor& monitor_;
  std::mutex mutex_;
  std::map<std::string, std::string> found_at_;  // reference -> node, as last seen.
};

}  // namespace godwit::daemon
