// Migrations, both sides of them: workers are started, watched, and what they leave behind when
// they die is settled by the records alone (docs/ENGINE.md, "commit and doubt"; migrate/commit.h
// has the rules). The daemon adds no rule of its own.
//
// A migration holds the capsule's Operation in a thread of its own, from the request until the
// outcome is certain. So whoever asked may leave, and a doubt may last for days.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "daemon/config.h"
#include "daemon/history.h"
#include "daemon/host.h"
#include "daemon/node_monitor.h"
#include "daemon/peers.h"
#include "daemon/spares.h"
#include "daemon/worker.h"
#include "migrate/commit_record.h"
#include "migrate/report.h"
#include "sys/cpuid.h"

namespace godwit::daemon {

class Migrations {
 public:
  Migrations(const Config& config, Host& host, Peers& peers, History& history, NodeMonitor& monitor,
             Spares& spares)
      : config_(config),
        host_(host),
        peers_(peers),
        history_(history),
        monitor_(monitor),
        offered_(sys::without_features(sys::cpu_features(), config.hidden_cpu_features)),
        spares_(spares) {}

  // Takes up what another godwitd had begun (Host::adopt).
  void take_over(const std::vector<HostedPtr>& undecided);

  using Progress = std::function<void(const api::MigrateProgress&)>;
  Result<api::MigrationResult> migrate(const HostedPtr& capsule, const api::MigrateRequest& request,
                                       const Progress& progress);
  Result<api::CanMigrateReply> can_migrate(const HostedPtr& capsule, const std::string& target);
  Result<void> freeze(const HostedPtr& capsule, bool frozen);
  Result<void> kill(const rpc::Call& call, const HostedPtr& capsule);
  Result<void> resolve(const HostedPtr& capsule, const std::string& lost_node);

  struct Choice {
    std::string node;
    std::string reason;
  };
  // Where to: the node with most free processor, of those with room. Also for `run --node best`.
  Result<Choice> choose(std::uint64_t memory_bytes, bool here_too);

  // As target. `note_grants`: what has started here counts from now on, also if its worker's
  // watcher hasn't looked since; for whoever answers where a capsule is.
  void note_grants();
  Result<node::ReserveReply> reserve(const std::string& peer, const node::ReserveRequest& request);
  Result<node::ReleaseReply> release(const node::ReleaseRequest& request);
  Result<node::OutcomeReply> outcome(const node::OutcomeRequest& request);

 private:
  struct Attempt;  // Of the source, while it lasts.
  using AttemptPtr = std::shared_ptr<Attempt>;

  // Source (outgoing.cc).
  Result<node::ReserveReply> ask_target(const Attempt& attempt, const HostedPtr& capsule);
  void run_attempt(AttemptPtr attempt, Operation operation);
  Result<wire::Report> run_source_worker(Attempt& attempt, const HostedPtr& capsule);
  void recover(const HostedPtr& capsule);
  void settle(Attempt& attempt, const HostedPtr& capsule);
  bool has_given_up(const HostedPtr& capsule);
  void note_doubt(const HostedPtr& capsule, const std::string& why);
  bool settle_step(Attempt& attempt, const HostedPtr& capsule);
  Result<migrate::Answer> ask_outcome(const HostedPtr& capsule, node::OutcomeReply& reply);
  Result<bool> act(Attempt& attempt, const HostedPtr& capsule, migrate::SourceAction action,
                   const node::OutcomeReply& reply);
  void release_target(const Attempt& attempt);
  Result<void> thaw(Attempt& attempt, const HostedPtr& capsule);
  Result<bool> serve(Attempt& attempt, const HostedPtr& capsule, const node::OutcomeReply& reply);
  Spares::Announce recorder(const HostedPtr& capsule);
  void conclude(Attempt& attempt, const HostedPtr& capsule, const std::string& outcome,
                const std::string& reason);
  Result<std::uint32_t> change_journal(const HostedPtr& capsule, migrate::SourceState from,
                                       migrate::SourceState to);

  // Target (incoming.cc).
  std::vector<std::string> admission(const node::ReserveRequest& request);
  Result<std::vector<std::string>> missing_files(const node::ReserveRequest& request);
  void remove_spare(const CapsuleId& spare);
  void await_departure(const CapsuleId& id);
  void watch_incoming(Operation operation, std::shared_ptr<Worker> worker);
  bool note_grant(const HostedPtr& capsule);
  Result<node::OutcomeReply> needs_no_pages(const CapsuleId& id, Epoch epoch);
  Result<node::OutcomeReply> resume_drain(const CapsuleId& id, Epoch epoch);
  void watch_drain(const HostedPtr& capsule);
  bool source_rebooted(const HostedPtr& capsule);
  Result<void> lose(const HostedPtr& capsule);
  void end_incoming(const HostedPtr& capsule, bool moved);

  const Config& config_;
  Host& host_;
  Peers& peers_;
  History& history_;
  NodeMonitor& monitor_;
  // Of this processor; asking it again costs an exit to the hypervisor for each leaf.
  const Result<std::string> offered_;
  Spares& spares_;

  std::mutex grants_;  // One at a time notes that a capsule runs here.
  std::mutex mutex_;
  std::map<std::string, std::uint64_t> reserved_bytes_;  // Incoming, by capsule.
  std::set<std::string> drains_watched_;                 // By capsule.
  std::map<std::string, std::string> resolved_;          // Capsule -> node that is lost for good.
};

}  // namespace godwit::daemon
