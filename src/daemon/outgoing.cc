// Migrations, as source.
// clang-format off: <signal.h> has a macro named as a field of the image.
#include "daemon/migrations.h"
// clang-format on

#include <signal.h>

#include <thread>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "capsule/shell.h"

namespace godwit::daemon {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// A worker that is silent for so long is taken for dead, killed, and its records decide. It reports
// progress at least once a second; a frozen 60,000-mapping program takes well below a second.
constexpr std::int64_t worker_silence_ms_max = 60'000;
// How long the one who asked waits for the end of a doubt before he is told of it.
constexpr seconds doubt_patience{5};
constexpr milliseconds ask_again{500};

Result<wire::Mode> parse_mode(const std::string& text) {
  if (text.empty() || text == "auto") return wire::AUTO;
  if (text == "stop") return wire::STOP;
  if (text == "precopy") return wire::PRECOPY;
  if (text == "postcopy") return wire::POSTCOPY;
  if (text == "hybrid") return wire::HYBRID;
  return make_error(Errc::invalid, "mode {}: one of auto, stop, precopy, postcopy, hybrid", text);
}

std::string mode_name(wire::Mode mode) {
  switch (mode) {
    case wire::STOP:
      return "stop";
    case wire::PRECOPY:
      return "precopy";
    case wire::POSTCOPY:
      return "postcopy";
    case wire::HYBRID:
      return "hybrid";
    default:
      return "auto";
  }
}

void fill(api::MigrationResult& result, const wire::Report& report) {
  result.set_mode(mode_name(report.mode()));
  result.set_downtime_us(report.downtime_us());
  result.set_total_us(report.total_us());
  result.set_bytes_sent(report.bytes_sent());
  result.set_pages_sent(report.pages_sent());
  result.set_pages_zero(report.pages_zero());
  for (const auto& round : report.rounds()) {
    auto* out = result.add_rounds();
    out->set_pages(round.pages());
    out->set_bytes(round.bytes());
    out->set_us(round.us());
  }
  for (const auto& phase : report.phases()) {
    auto* out = result.add_phases();
    out->set_name(phase.name());
    out->set_begin_us(phase.begin_us());
    out->set_us(phase.us());
  }
  *result.mutable_residual() = report.residual();
  *result.mutable_reasons() = report.reasons();
  result.set_faults(report.faults());
  result.set_fault_p50_us(report.fault_p50_us());
  result.set_fault_p99_us(report.fault_p99_us());
  result.set_drain_us(report.drain_us());
  result.set_dirty_bytes_per_s(report.dirty_bytes_per_s());
  result.set_link_bytes_per_s(report.link_bytes_per_s());
}

wire::WorkerOrder recover_order(const HostedPtr& capsule, wire::RecoverOrder::Action action) {
  wire::WorkerOrder order;
  order.mutable_recover()->set_capsule(capsule->id().value);
  order.mutable_recover()->set_action(action);
  return order;
}

}  // namespace

// What is known of one migration from here. The asker sees only what the mutex guards, and only the
// latest news: a client that doesn't read must not hold up the worker.
struct Migrations::Attempt {
  wire::Mode mode = wire::AUTO;
  std::int64_t downtime_target_us = 0;
  node::ReserveReply reserved;
  api::MigrationResult result;
  std::int64_t began_us = monotonic_us();

  std::mutex mutex;
  std::condition_variable changed;
  std::optional<api::MigrateProgress> news;
  std::optional<api::MigrationResult> answer;

  void tell(std::optional<api::MigrateProgress> progress) {
    const std::lock_guard lock(mutex);
    news = std::move(progress);
    changed.notify_all();
  }
  void tell_result() {
    const std::lock_guard lock(mutex);
    if (!answer) answer = result;
    changed.notify_all();
  }
  bool told() {
    const std::lock_guard lock(mutex);
    return answer.has_value();
  }
};

Result<node::ReserveReply> Migrations::ask_target(const Attempt& attempt,
                                                  const HostedPtr& capsule) {
  node::ReserveRequest request;
  request.set_migration(attempt.result.id());
  request.set_source(config_.env.node.value);
  request.set_boot(monitor_.boot());
  request.set_epoch(attempt.result.epoch());
  {
    const std::lock_guard lock(capsule->mutex);
    *request.mutable_spec() = capsule->record.spec();
    *request.mutable_record() = capsule->record;
    request.set_memory_bytes(capsule->memory_bytes);
  }
  auto* peer = TRY(peers_.find(attempt.result.target()));
  return peer->reserve("", request);
}

Result<api::MigrationResult> Migrations::migrate(const HostedPtr& capsule,
                                                 const api::MigrateRequest& request,
                                                 const Progress& progress) {
  auto attempt = std::make_shared<Attempt>();
  attempt->mode = TRY(parse_mode(request.mode()));
  attempt->downtime_target_us = request.downtime_target_us();
  auto operation = TRY(host_.begin(capsule, "migrated"));
  auto& result = attempt->result;
  std::uint64_t memory_bytes = 0;
  {
    const std::lock_guard lock(capsule->mutex);
    const auto& record = capsule->record;
    if (record.state() == state::frozen) {
      return make_error(Errc::refused, "{} is frozen; thaw it first", record.spec().name());
    }
    if (record.residual_size() > 0) {
      return make_error(Errc::refused, "{} still gets its pages from {}", record.spec().name(),
                        record.residual(0));
    }
    result.set_id(random_hex(8));
    result.set_capsule(record.spec().name());
    result.set_capsule_id(record.spec().id());
    result.set_uid(record.spec().uid());
    result.set_epoch(record.epoch() + 1);
    memory_bytes = capsule->memory_bytes;
  }
  result.set_source(config_.env.node.value);
  result.set_mode_asked(mode_name(attempt->mode));
  result.set_mode(result.mode_asked());
  result.set_started_realtime_us(realtime_us());
  result.set_target(request.target());
  if (request.target().empty() || request.target() == "best") {
    auto choice = TRY(choose(memory_bytes, false));
    result.set_target(choice.node);
    result.set_choice(choice.reason);
  }
  if (result.target() == config_.env.node.value) {
    return make_error(Errc::refused, "{} is on {} already", result.capsule(), result.target());
  }
  TRY(peers_.find(result.target()));
  TRY(host_.update(capsule, [&](auto& record) { record.set_epoch(result.epoch()); }));

  std::thread([this, attempt, operation = std::move(operation)]() mutable {
    run_attempt(attempt, std::move(operation));
  }).detach();
  std::unique_lock lock(attempt->mutex);
  while (!attempt->answer) {
    attempt->changed.wait(lock, [&] { return attempt->answer || attempt->news; });
    if (!attempt->news) continue;
    const auto news = *std::exchange(attempt->news, std::nullopt);
    lock.unlock();
    progress(news);
    lock.lock();
  }
  return *attempt->answer;
}

void Migrations::conclude(Attempt& attempt, const HostedPtr& capsule, const std::string& outcome,
                          const std::string& reason) {
  auto& result = attempt.result;
  result.set_outcome(outcome);
  result.set_reason(reason);
  if (result.total_us() == 0) result.set_total_us(monotonic_us() - attempt.began_us);
  LOG(info, "migration {} of {} to {}: {}{}{}", result.id(), result.capsule(), result.target(),
      outcome, reason.empty() ? "" : ": ", reason);
  if (auto kept = history_.record(result); !kept.ok()) {
    LOG(error, "migration {} of {}: {}", result.id(), capsule->id(), kept.error().what());
  }
  attempt.tell_result();
}

void Migrations::run_attempt(AttemptPtr attempt, Operation operation) {
  const HostedPtr capsule = operation.capsule();
  auto reserved = ask_target(*attempt, capsule);
  if (!reserved.ok()) {
    conclude(*attempt, capsule, "stayed", reserved.error().what());
    return;
  }
  if (reserved->reasons_size() > 0) {
    *attempt->result.mutable_reasons() = reserved->reasons();
    conclude(*attempt, capsule, "refused", reserved->reasons(0));
    return;
  }
  attempt->reserved = *reserved;
  auto report = run_source_worker(*attempt, capsule);
  if (report.ok()) fill(attempt->result, *report);
  const std::string reason = report.ok() ? report->reason() : report.error().what();
  const auto outcome = report.ok() ? report->outcome() : wire::Report::UNKNOWN;
  Result<void> done;
  switch (outcome) {
    case wire::Report::MOVED:
      done = host_.leave(capsule, NodeId{attempt->result.target()});
      conclude(*attempt, capsule, "moved", reason);
      break;
    case wire::Report::STAYED:
    case wire::Report::FAILED:
      done = host_.stayed(capsule, "");
      release_target(*attempt);
      conclude(*attempt, capsule, report->reasons_size() > 0 ? "refused" : "stayed", reason);
      break;
    case wire::Report::LOST:
      done = host_.ended(capsule, SIGKILL, reason);
      conclude(*attempt, capsule, "lost", reason);
      break;
    default:
      attempt->result.set_reason(reason);
      settle(*attempt, capsule);
      break;
  }
  if (!done.ok()) LOG(error, "after migration {}: {}", attempt->result.id(), done.error().what());
}

Result<wire::Report> Migrations::run_source_worker(Attempt& attempt, const HostedPtr& capsule) {
  const auto& result = attempt.result;
  TRY(host_.update(capsule, [&](auto& record) {
    record.set_state(state::migrating);
    record.set_target(result.target());
    record.set_migration(result.id());
    record.set_target_boot(attempt.reserved.boot());
    record.set_mode(result.mode_asked());
    record.set_attempt_realtime_us(result.started_realtime_us());
    record.set_worker_pid(0);
  }));
  wire::WorkerOrder order;
  auto* source = order.mutable_source();
  source->set_migration(result.id());
  source->set_capsule(result.capsule_id());
  source->set_epoch(result.epoch());
  source->set_mode(attempt.mode);
  source->set_downtime_target_us(attempt.downtime_target_us);
  source->set_target_node(result.target());
  source->set_target_address(attempt.reserved.address());
  source->set_target_port(attempt.reserved.port());
  source->set_token(attempt.reserved.token());
  source->set_target_boot(attempt.reserved.boot());
  for (const auto& dir : config_.shared) source->add_shared_dirs(dir);
  auto worker = TRY(Worker::start(config_.env, std::move(order)));
  auto started = host_.update(capsule, [&](auto& record) {
    record.set_worker_pid(worker->pid());
    auto ticks = migrate::process_start_ticks(worker->pid());
    if (ticks.ok()) record.set_worker_start_ticks(*ticks);
  });
  if (!started.ok()) LOG(error, "record of {}: {}", capsule->id(), started.error().what());
  auto report = worker->finish(
      [&](const wire::Progress& news) {
        api::MigrateProgress out;
        out.set_phase(news.phase());
        out.set_bytes_sent(news.bytes_sent());
        out.set_bytes_remaining(news.bytes_remaining());
        out.set_bytes_per_s(news.bytes_per_s());
        out.set_dirty_bytes_per_s(news.dirty_bytes_per_s());
        out.set_elapsed_us(monotonic_us() - attempt.began_us);
        attempt.tell(std::move(out));
      },
      worker_silence_ms_max);
  if (!report.ok()) worker->kill();
  worker->wait_end();
  return report;
}

// ---- When the worker died or does not know ----

void Migrations::settle(Attempt& attempt, const HostedPtr& capsule) {
  const auto patience_ends = std::chrono::steady_clock::now() + doubt_patience;
  while (!settle_step(attempt, capsule)) {
    if (std::chrono::steady_clock::now() > patience_ends && !attempt.told()) {
      conclude(
          attempt, capsule, "in-doubt",
          fmt::format("{} has not said whether it started; asking on", attempt.result.target()));
    }
    std::unique_lock lock(capsule->mutex);
    capsule->changed.wait_for(lock, ask_again);
  }
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
    auto answer = ask_outcome(capsule, reply);
    if (!answer.ok()) {
      const std::string note = fmt::format("{} took it over, or not: {}", attempt.result.target(),
                                           answer.error().what());
      auto noted = host_.update(capsule, [&](auto& record) {
        record.set_state(state::in_doubt);
        record.set_note(note);
      });
      if (!noted.ok()) LOG(error, "record of {}: {}", capsule->id(), noted.error().what());
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
    conclude(attempt, capsule, "stayed", attempt.result.reason());
    return true;
  }
  auto done = act(attempt, capsule, action, reply);
  if (!done.ok()) LOG(error, "capsule {}: {}", capsule->id(), done.error().what());
  return done.ok() && *done;
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
      TRY(execute(config_.env, recover_order(capsule, wire::RecoverOrder::DESTROY)));
      TRY(host_.leave(capsule, NodeId{attempt.result.target()}));
      conclude(attempt, capsule, "moved",
               "found out from the records, after godwitd or its worker was lost");
      return true;
    case SourceAction::lost:
      TRY(change_journal(capsule, SourceState::given_up, SourceState::released));
      TRY(execute(config_.env, recover_order(capsule, wire::RecoverOrder::DESTROY)));
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
  TRY(execute(config_.env, recover_order(capsule, wire::RecoverOrder::THAW)));
  TRY(host_.stayed(capsule, ""));
  release_target(attempt);
  conclude(attempt, capsule, "stayed", attempt.result.reason());
  return {};
}

Result<bool> Migrations::serve(Attempt& attempt, const HostedPtr& capsule,
                               const node::OutcomeReply& reply) {
  TRY(host_.update(capsule, [&](auto& record) {
    record.set_state(state::migrating);
    record.set_note("runs on " + attempt.result.target() + ", pages are still here");
  }));
  wire::WorkerOrder order;
  auto* serve = order.mutable_serve();
  serve->set_capsule(capsule->id().value);
  serve->set_epoch(attempt.result.epoch());
  serve->set_target_address(reply.address());
  serve->set_target_port(reply.port());
  serve->set_token(reply.token());
  auto worker = TRY(Worker::start(config_.env, std::move(order)));
  auto started = host_.update(capsule, [&](auto& record) {
    record.set_worker_pid(worker->pid());
    auto ticks = migrate::process_start_ticks(worker->pid());
    if (ticks.ok()) record.set_worker_start_ticks(*ticks);
  });
  if (!started.ok()) LOG(error, "record of {}: {}", capsule->id(), started.error().what());
  auto report = worker->finish({}, worker_silence_ms_max);
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

void Migrations::take_over(const std::vector<HostedPtr>& undecided) {
  for (const auto& capsule : undecided) {
    const bool incoming = capsule->record.incoming() || capsule->record.residual_size() > 0;
    migrate::RecordContent worker;
    worker.worker_pid = capsule->record.worker_pid();
    worker.worker_start_ticks = capsule->record.worker_start_ticks();
    if (capsule->ended()) continue;
    Operation operation = host_.resume(capsule, "migrated");
    if (incoming) {
      std::thread([this, operation = std::move(operation)]() mutable {
        watch_incoming(std::move(operation), nullptr);
      }).detach();
      continue;
    }
    auto attempt = std::make_shared<Attempt>();
    auto& result = attempt->result;
    const auto& record = capsule->record;
    result.set_id(record.migration());
    result.set_capsule(record.spec().name());
    result.set_capsule_id(record.spec().id());
    result.set_uid(record.spec().uid());
    result.set_epoch(record.epoch());
    result.set_source(config_.env.node.value);
    result.set_target(record.target());
    result.set_mode_asked(record.mode());
    result.set_mode(record.mode());
    result.set_started_realtime_us(record.attempt_realtime_us());
    result.set_reason("godwitd was restarted during the migration");
    std::thread([this, attempt, worker, operation = std::move(operation)]() mutable {
      std::thread([this, capsule = operation.capsule()] { host_.try_streams(capsule); }).detach();
      // The worker goes on without us; what it achieves is in its records.
      while (worker.worker_pid != 0 && migrate::worker_alive(worker)) {
        std::this_thread::sleep_for(milliseconds(50));
      }
      settle(*attempt, operation.capsule());
    }).detach();
  }
}

}  // namespace godwit::daemon
