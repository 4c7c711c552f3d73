// Migrations: what people ask beside a migration itself.

// clang-format off: <signal.h> has a macro named as a field of the image.
#include "daemon/migrations.h"
// clang-format on

#include "base/log.h"
#include "sys/cpuid.h"

namespace godwit::daemon {
namespace {
using std::chrono::milliseconds;
using std::chrono::seconds;

// How long `kill` waits for a migration to tell where the capsule is.
constexpr seconds kill_wait_max{60};
constexpr milliseconds kill_look{20};
// A question that is on its way to the lost node ends first: TCP hopes for 20 s.
constexpr seconds resolve_wait_max{60};
}  // namespace

Result<Migrations::Choice> Migrations::choose(std::uint64_t memory_bytes, bool here_too) {
  auto answers = peers_.ask_all<api::NodeInfo>(
      [](rpc::NodeClient& peer) { return peer.status(node::StatusRequest()); });
  std::vector<api::NodeInfo> nodes;
  if (here_too) nodes.push_back(monitor_.info());
  for (auto& [name, answer] : answers) {
    if (answer.ok()) nodes.push_back(*answer);
  }
  const api::NodeInfo* best = nullptr;
  double best_idle = 0;
  std::uint64_t best_free = 0;
  for (const auto& node : nodes) {
    const std::uint64_t free_bytes =
        node.memory_limit_bytes() - std::min(node.memory_used_bytes(), node.memory_limit_bytes());
    if (!node.accepts() || free_bytes < memory_bytes) continue;
    const double idle = std::max(0.0, node.cores() * node.speed() - node.load());
    // A tenth of a core is noise: then free memory decides.
    const bool better = best == nullptr || idle > best_idle + 0.1 ||
                        (idle > best_idle - 0.1 && free_bytes > best_free);
    if (!better) continue;
    best = &node;
    best_idle = idle;
    best_free = free_bytes;
  }
  if (best == nullptr) return make_error(Errc::refused, "no node that answers has room");
  return Choice{best->name(),
                fmt::format("{} has the most idle processor ({:.1f} cores) and {} MiB free, of {} "
                            "nodes that answered",
                            best->name(), best_idle, best_free >> 20, nodes.size())};
}

Result<api::CanMigrateReply> Migrations::can_migrate(const HostedPtr& capsule,
                                                     const std::string& target) {
  api::CanMigrateReply reply;
  node::ReserveRequest request;
  {
    const std::lock_guard lock(capsule->mutex);
    const auto& record = capsule->record;
    if (capsule->ended()) return make_error(Errc::refused, "{} has ended", record.spec().name());
    reply.set_capsule(record.spec().name());
    *request.mutable_spec() = record.spec();
    request.set_memory_bytes(host_.memory_bytes(capsule));
    if (record.state() != state::running) reply.add_reasons("it is " + record.state());
  }
  reply.set_source(config_.env.node.value);
  wire::WorkerOrder order;
  order.mutable_check()->set_capsule(capsule->id().value);
  for (const auto& dir : config_.shared) order.mutable_check()->add_shared_dirs(dir);
  {
    // What only the program knows is asked in a short stop of it, so nobody else may stop it
    // meanwhile. One that stands still or is busy is only looked at from outside.
    auto operation = host_.begin(capsule, "looked at");
    if (!operation.ok()) reply.add_reasons(operation.error().what());
    const bool inside = operation.ok() && reply.reasons().empty();
    order.mutable_check()->set_inside(inside);
    auto report = spares_.execute(std::move(order));
    if (!report.ok() && inside) recover(capsule);
    if (!report.ok()) return std::move(report).error();
    for (const auto& reason : report->reasons()) reply.add_reasons(reason);
    *request.mutable_files() = std::move(*report->mutable_files());
    request.set_kernel_needs(report->kernel_needs());
  }

  reply.set_target(target);
  if (target.empty() || target == "best") {
    auto choice = choose(request.memory_bytes(), false);
    if (!choice.ok()) {
      reply.add_reasons(choice.error().what());
      return reply;
    }
    reply.set_target(choice->node);
  }
  if (reply.target() == config_.env.node.value) {
    reply.add_reasons(fmt::format("it is on {} already", reply.target()));
    return reply;
  }
  auto* peer = TRY(peers_.find(reply.target()));
  request.set_only_check(true);
  request.set_cpu_features(sys::cpu_features());
  request.set_source(config_.env.node.value);
  auto there = peer->reserve("", request);
  if (!there.ok())
    reply.add_reasons(there.error().what());
  else
    for (const auto& reason : there->reasons()) reply.add_reasons(reason);
  return reply;
}

// After an order that failed: its worker may have died with the tree in its hands.
void Migrations::recover(const HostedPtr& capsule) {
  wire::WorkerOrder order;
  order.mutable_recover()->set_capsule(capsule->id().value);
  order.mutable_recover()->set_action(wire::RecoverOrder::THAW);
  if (auto thawed = spares_.execute(std::move(order)); !thawed.ok())
    LOG(error, "capsule {} after a failed order: {}", capsule->id(), thawed.error().what());
}

Result<void> Migrations::freeze(const HostedPtr& capsule, bool frozen) {
  auto operation = TRY(host_.begin(capsule, frozen ? "frozen" : "thawed"));
  {
    const std::lock_guard lock(capsule->mutex);
    if ((capsule->record.state() == state::frozen) == frozen) return {};
  }
  wire::WorkerOrder order;
  order.mutable_freeze()->set_capsule(capsule->id().value);
  order.mutable_freeze()->set_frozen(frozen);
  auto done = spares_.execute(std::move(order));
  if (!done.ok() && frozen) recover(capsule);
  TRY(std::move(done));
  return host_.update(capsule, [&](auto& record) {
    record.set_state(frozen ? state::frozen : state::running);
    record.set_frozen(frozen);
  });
}

// A copy that has been given up is not for us to kill: it may be that the other one runs, and needs
// its pages. So the migration is called off first, as the records allow it or not.
Result<void> Migrations::kill(const rpc::Call& call, const HostedPtr& capsule) {
  using migrate::SourceState;
  const auto until = std::chrono::steady_clock::now() + kill_wait_max;
  while (true) {
    {
      const std::lock_guard lock(capsule->mutex);
      const std::string& name = capsule->record.spec().name();
      if (capsule->departed()) {
        return make_error(Errc::not_found, "{} has moved", name);
      }
      if (capsule->record.state() != state::migrating) break;
      if (call.is_cancelled() || std::chrono::steady_clock::now() > until) {
        return make_error(Errc::timeout, "{} is moving; it was not killed", name);
      }
    }
    auto now = change_journal(capsule, SourceState::attempting, SourceState::kept);
    // No journal, or an earlier attempt's: its worker has not begun, and finds nothing to move.
    const bool none =
        !now.ok() && (now.error().code() == Errc::not_found || now.error().code() == Errc::refused);
    if (none || (now.ok() && *now == static_cast<std::uint32_t>(SourceState::kept))) break;
    if (!now.ok()) return std::move(now).error();
    std::unique_lock lock(capsule->mutex);
    capsule->changed.wait_for(lock, kill_look);
  }
  return host_.kill(capsule);
}

Result<void> Migrations::resolve(const HostedPtr& capsule, const std::string& lost_node) {
  {
    const std::lock_guard lock(capsule->mutex);
    const auto& record = capsule->record;
    if (record.state() != state::in_doubt) {
      return make_error(Errc::refused, "{} is not in doubt", record.spec().name());
    }
    if (record.target() != lost_node) {
      return make_error(Errc::refused, "{} may be on {}, not on {}", record.spec().name(),
                        record.target(), lost_node);
    }
    const std::lock_guard own(mutex_);
    resolved_[record.spec().id()] = lost_node;
  }
  LOG(warn, "capsule {}: resolved by hand, {} is lost", capsule->id(), lost_node);
  std::unique_lock lock(capsule->mutex);
  capsule->changed.notify_all();
  const bool settled = capsule->changed.wait_for(lock, resolve_wait_max, [&] {
    return capsule->record.state() != state::in_doubt || !capsule->left_to.empty();
  });
  lock.unlock();
  const std::lock_guard own(mutex_);
  resolved_.erase(capsule->id().value);
  if (!settled) return make_error(Errc::timeout, "it is still in doubt");
  return {};
}

}  // namespace godwit::daemon
