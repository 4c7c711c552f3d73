// Migrations, as source: when a worker died or does not know, the records decide.
// clang-format off: <signal.h> has a macro named as a field of the image.
#include "daemon/attempt.h"
// clang-format on

#include <signal.h>

#include "base/log.h"

namespace godwit::daemon {
namespace {

constexpr const char* being_asked = "it is being asked";

wire::WorkerOrder recover_order(const HostedPtr& capsule, wire::RecoverOrder::Action action) {
  wire::WorkerOrder order;
  order.mutable_recover()->set_capsule(capsule->id().value);
  order.mutable_recover()->set_action(action);
  return order;
}

}  // namespace

void Migrations::settle(Attempt& attempt, const HostedPtr& capsule) {
  while (!settle_step(attempt, capsule)) {
    std::unique_lock lock(capsule->mutex);
    capsule->changed.wait_for(lock, Attempt::ask_again);
  }
}

void Migrations::note_doubt(const HostedPtr& capsule, const std::string& why) {
  auto noted = host_.update(capsule, [&](auto& record) {
    // The last answer says more than that another one is awaited.
    const bool again = record.state() == state::in_doubt;
    if (again && !record.note().empty() && why == being_asked) return;
    record.set_state(state::in_doubt);
    record.set_note(fmt::format("{} took it over, or not: {}", record.target(), why));
    capsule->serving = false;  // Whoever looks for it, to resolve it, must find it here.
  });
  if (!noted.ok()) LOG(error, "record of {}: {}", capsule->id(), noted.error().what());
}

// True: the doubt has ended.
bool Migrations::settle_step(Attempt& attempt, const HostedPtr& capsule) {
  auto journal =
      migrate::CommitRecord::open(migrate::journal_path(config_.env, capsule->id()), false);
  auto content = journal.ok() ? journal->read() : Result<migrate::RecordContent>(journal.error());
  migrate::SourceState state = migrate::SourceState::attempting;
  // No journal, or of an earlier attempt: the worker died before it touched anything.
  const bool current = content.ok() && content->epoch.value == attempt.result.epoch();
  if (current) {
    state = static_cast<migrate::SourceState>(content->state);
  } else if (!content.ok() && content.error().code() != Errc::not_found) {
    LOG(error, "journal of {}: {}", capsule->id(), content.error().what());
    return false;
  }
  node::OutcomeReply reply;
  auto action = migrate::decide(state);
  if (action == migrate::SourceAction::ask) {
    // Noted before the question: an answer may take long, behind a cut link as long as TCP hopes.
    attempt.begin_doubt();
    note_doubt(capsule, being_asked);
    auto answer = ask_outcome(capsule, reply);
    if (!answer.ok()) {
      note_doubt(capsule, answer.error().what());
      return false;
    }
    action = migrate::decide(state, *answer);
  } else if (action == migrate::SourceAction::thaw && current &&
             state == migrate::SourceState::attempting) {
    auto now =
        change_journal(capsule, migrate::SourceState::attempting, migrate::SourceState::kept);
    if (!now.ok() || *now != static_cast<std::uint32_t>(migrate::SourceState::kept)) return false;
  }
  if (!current && action == migrate::SourceAction::thaw) {
    // No worker of ours has touched it (there may be none that could be asked to mend anything).
    auto stays = host_.stayed(capsule, "");
    if (!stays.ok()) LOG(error, "record of {}: {}", capsule->id(), stays.error().what());
    release_target(attempt);
    conclude(attempt, capsule, "stayed", attempt.cause);
    return true;
  }
  auto done = act(attempt, capsule, action, reply);
  if (!done.ok()) LOG(error, "capsule {}: {}", capsule->id(), done.error().what());
  return done.ok() && *done;
}

bool Migrations::has_given_up(const HostedPtr& capsule) {
  auto journal =
      migrate::CommitRecord::open(migrate::journal_path(config_.env, capsule->id()), false);
  auto content = journal.ok() ? journal->read() : Result<migrate::RecordContent>(journal.error());
  const std::lock_guard lock(capsule->mutex);
  return content.ok() && content->epoch.value == capsule->record.epoch() &&
         content->state == static_cast<std::uint32_t>(migrate::SourceState::given_up);
}

Result<std::uint32_t> Migrations::change_journal(const HostedPtr& capsule,
                                                 migrate::SourceState from,
                                                 migrate::SourceState to) {
  std::uint64_t epoch = 0;
  {
    const std::lock_guard lock(capsule->mutex);
    epoch = capsule->record.epoch();
  }
  auto journal =
      TRY(migrate::CommitRecord::open(migrate::journal_path(config_.env, capsule->id()), false));
  return journal.change(Epoch{epoch}, static_cast<std::uint32_t>(from),
                        static_cast<std::uint32_t>(to));
}

Result<migrate::Answer> Migrations::ask_outcome(const HostedPtr& capsule,
                                                node::OutcomeReply& reply) {
  node::OutcomeRequest request;
  std::string target;
  {
    const std::lock_guard lock(capsule->mutex);
    request.set_capsule(capsule->record.spec().id());
    request.set_epoch(capsule->record.epoch());
    target = capsule->record.target();
  }
  {
    const std::lock_guard lock(mutex_);
    const auto resolved = resolved_.find(request.capsule());
    // A human's word, which stands for the refusal that the lost node can't give anymore.
    if (resolved != resolved_.end() && resolved->second == target) return migrate::Answer::refused;
  }
  auto* peer = TRY(peers_.find(target));
  reply = TRY(peer->outcome("", request));
  switch (reply.answer()) {
    case node::OutcomeReply::RUNNING:
      return migrate::Answer::running;
    case node::OutcomeReply::REFUSED:
      return migrate::Answer::refused;
    case node::OutcomeReply::LOST:
      return migrate::Answer::lost;
    case node::OutcomeReply::DRAINING:
      return migrate::Answer::draining;
    default:
      return make_error(Errc::in_doubt, "{} gave no answer", target);
  }
}

Result<bool> Migrations::act(Attempt& attempt, const HostedPtr& capsule,
                             migrate::SourceAction action, const node::OutcomeReply& reply) {
  using migrate::SourceAction;
  using migrate::SourceState;
  switch (action) {
    case SourceAction::ask:
      return false;
    case SourceAction::serve:
      return serve(attempt, capsule, reply);
    case SourceAction::thaw:
      TRY(thaw(attempt, capsule));
      return true;
    case SourceAction::destroy:
      // There may be no journal to change anymore (released already).
      if (auto now = change_journal(capsule, SourceState::given_up, SourceState::released);
          !now.ok() && now.error().code() != Errc::not_found) {
        return std::move(now).error();
      }
      TRY(spares_.execute(recover_order(capsule, wire::RecoverOrder::DESTROY)));
      TRY(host_.leave(capsule, NodeId{attempt.result.target()}));
      conclude(attempt, capsule, "moved",
               "found out from the records, after godwitd or its worker was lost");
      return true;
    case SourceAction::lost:
      TRY(change_journal(capsule, SourceState::given_up, SourceState::released));
      TRY(spares_.execute(recover_order(capsule, wire::RecoverOrder::DESTROY)));
      TRY(host_.ended(
          capsule, SIGKILL,
          fmt::format("it ran on {} and died with that node", attempt.result.target())));
      conclude(attempt, capsule, "lost", "the target ran it and was rebooted");
      return true;
  }
  return false;
}

// What waits at the target isn't needed.
void Migrations::release_target(const Attempt& attempt) {
  node::ReleaseRequest release;
  release.set_migration(attempt.result.id());
  release.set_capsule(attempt.result.capsule_id());
  release.set_epoch(attempt.result.epoch());
  if (auto peer = peers_.find(attempt.result.target()); peer.ok()) {
    // If it doesn't hear this, it finds out by the end of the link between the workers.
    if (auto told = (*peer)->release("", release); !told.ok()) {
      LOG(warn, "release at {}: {}", attempt.result.target(), told.error().what());
    }
  }
}

Result<void> Migrations::thaw(Attempt& attempt, const HostedPtr& capsule) {
  using migrate::SourceState;
  // From given_up only after a refusal; from attempting it was done before.
  if (auto now = change_journal(capsule, SourceState::given_up, SourceState::kept);
      !now.ok() && now.error().code() != Errc::not_found) {
    return std::move(now).error();
  }
  TRY(spares_.execute(recover_order(capsule, wire::RecoverOrder::THAW)));
  TRY(host_.stayed(capsule, ""));
  release_target(attempt);
  conclude(attempt, capsule, "stayed", attempt.cause);
  return {};
}

Result<bool> Migrations::serve(Attempt& attempt, const HostedPtr& capsule,
                               const node::OutcomeReply& reply) {
  TRY(host_.update(capsule, [&](auto& record) {
    record.set_state(state::migrating);
    record.set_note("runs on " + attempt.result.target() + ", pages are still here");
  }));
  host_.serves(capsule);
  wire::WorkerOrder order;
  auto* serve = order.mutable_serve();
  serve->set_capsule(capsule->id().value);
  serve->set_epoch(attempt.result.epoch());
  serve->set_target_address(reply.address());
  serve->set_target_port(reply.port());
  serve->set_token(reply.token());
  auto worker = TRY(spares_.start(std::move(order), recorder(capsule)));
  auto report = worker->finish({}, config_.worker_silence_ms);
  if (!report.ok()) worker->kill();
  worker->wait_end();
  if (!report.ok()) return std::move(report).error();
  if (report->outcome() == wire::Report::LOST) {
    TRY(host_.ended(capsule, SIGKILL, report->reason()));
    conclude(attempt, capsule, "lost", report->reason());
    return true;
  }
  if (report->outcome() != wire::Report::MOVED) return false;
  TRY(host_.leave(capsule, NodeId{attempt.result.target()}));
  conclude(attempt, capsule, "moved", "the drain was resumed after a worker was lost");
  return true;
}

}  // namespace godwit::daemon
