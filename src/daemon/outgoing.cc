// Migrations, as source.
// clang-format off: <signal.h> has a macro named as a field of the image.
#include "daemon/attempt.h"
// clang-format on

#include <signal.h>

#include <thread>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread_name.h"
#include "capsule/shell.h"
#include "sys/cpuid.h"

namespace godwit::daemon {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

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

// The worker counts from its order; the whole began with the request, `order_us` before, and ends
// when the program is gone here (the worker's last phase).
void fill(api::MigrationResult& result, const wire::Report& report, std::int64_t order_us) {
  result.set_mode(mode_name(report.mode()));
  result.set_downtime_us(report.downtime_us());
  result.set_total_us(order_us + report.total_us());
  result.set_bytes_sent(report.bytes_sent());
  result.set_pages_sent(report.pages_sent());
  result.set_pages_zero(report.pages_zero());
  for (const auto& round : report.rounds()) {
    auto* out = result.add_rounds();
    out->set_pages(round.pages());
    out->set_bytes(round.bytes());
    out->set_us(round.us());
  }
  auto* reserve = result.add_phases();
  reserve->set_name("reserve");
  reserve->set_us(order_us);
  for (const auto& phase : report.phases()) {
    auto* out = result.add_phases();
    out->set_name(phase.name());
    out->set_begin_us(order_us + phase.begin_us());
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

}  // namespace

Result<node::ReserveReply> Migrations::ask_target(const Attempt& attempt,
                                                  const HostedPtr& capsule) {
  node::ReserveRequest request;
  request.set_migration(attempt.result.id());
  request.set_source(config_.env.node.value);
  request.set_boot(monitor_.boot());
  request.set_epoch(attempt.result.epoch());
  request.set_cpu_features(sys::cpu_features());
  {
    const std::lock_guard lock(capsule->mutex);
    *request.mutable_spec() = capsule->record.spec();
    *request.mutable_record() = capsule->record;
    request.set_memory_bytes(host_.memory_bytes(capsule));
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
  }
  result.set_source(config_.env.node.value);
  result.set_mode_asked(mode_name(attempt->mode));
  result.set_mode(result.mode_asked());
  result.set_started_realtime_us(realtime_us());
  result.set_target(request.target());
  if (request.target().empty() || request.target() == "best") {
    auto choice = TRY(choose(host_.memory_bytes(capsule), false));
    result.set_target(choice.node);
    result.set_choice(choice.reason);
  }
  if (result.target() == config_.env.node.value) {
    return make_error(Errc::refused, "{} is on {} already", result.capsule(), result.target());
  }
  TRY(peers_.find(result.target()));
  TRY(host_.update(capsule, [&](auto& record) { record.set_epoch(result.epoch()); }));

  std::thread([this, attempt, operation = std::move(operation)]() mutable {
    name_thread("outgoing");
    run_attempt(attempt, std::move(operation));
  }).detach();
  std::unique_lock lock(attempt->mutex);
  while (!attempt->answer) {
    attempt->changed.wait_for(lock, Attempt::ask_again,
                              [&] { return attempt->answer || attempt->news; });
    if (attempt->patience_ended()) {
      lock.unlock();
      conclude(*attempt, capsule, "in-doubt",
               fmt::format("{} has not said whether it started; asking on", result.target()));
      lock.lock();
    }
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
  const std::lock_guard one(attempt.conclusions);
  auto& result = attempt.result;
  // The doubt has ended while this was on its way.
  if (outcome == "in-doubt" && !result.outcome().empty()) return;
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
  if (report.ok()) fill(attempt->result, *report, attempt->order_us);
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
      attempt->cause = reason;
      settle(*attempt, capsule);
      break;
  }
  if (!done.ok()) LOG(error, "after migration {}: {}", attempt->result.id(), done.error().what());
  if (attempt->worker) attempt->worker->wait_end();
  spares_.restock();
}

// Writes down which worker is at it, for a daemon that comes after us.
Spares::Announce Migrations::recorder(const HostedPtr& capsule) {
  return [this, capsule](const Worker& worker) {
    return host_.update(capsule, [&](auto& record) { note_worker(record, worker); });
  };
}

Result<wire::Report> Migrations::run_source_worker(Attempt& attempt, const HostedPtr& capsule) {
  const auto& result = attempt.result;
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
  source->set_cpu_features(sys::cpu_features());
  for (const auto& dir : config_.shared) source->add_shared_dirs(dir);
  attempt.worker = TRY(spares_.start(std::move(order), [&](const Worker& worker) {
    return host_.update(capsule, [&](auto& record) {
      record.set_state(state::migrating);
      record.set_target(result.target());
      record.set_migration(result.id());
      record.set_target_boot(attempt.reserved.boot());
      record.set_mode(result.mode_asked());
      record.set_attempt_realtime_us(result.started_realtime_us());
      note_worker(record, worker);
    });
  }));
  attempt.order_us = monotonic_us() - attempt.began_us;
  auto report = attempt.worker->finish(
      [&](const wire::Progress& news) {
        api::MigrateProgress out;
        out.set_phase(news.phase());
        out.set_bytes_sent(news.bytes_sent());
        out.set_bytes_remaining(news.bytes_remaining());
        out.set_bytes_per_s(news.bytes_per_s());
        out.set_dirty_bytes_per_s(news.dirty_bytes_per_s());
        out.set_elapsed_us(monotonic_us() - attempt.began_us);
        attempt.tell(std::move(out));
        if (news.phase() == migrate::drain_phase) host_.serves(capsule);
      },
      config_.worker_silence_ms);
  if (report.ok()) return report;  // What is left of it is waited for after the answer.
  attempt.worker->kill();
  attempt.worker->wait_end();
  attempt.worker.reset();
  return report;
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
        name_thread("incoming");
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
    attempt->cause = "godwitd was restarted during the migration";
    std::thread([this, attempt, worker, operation = std::move(operation)]() mutable {
      name_thread("outgoing");
      std::thread([this, capsule = operation.capsule()] {
        name_thread("streams");
        host_.try_streams(capsule);
      }).detach();
      // The worker goes on without us; what it achieves is in its records.
      while (worker.worker_pid != 0 && migrate::worker_alive(worker)) {
        if (has_given_up(operation.capsule())) host_.serves(operation.capsule());
        std::this_thread::sleep_for(milliseconds(50));
      }
      settle(*attempt, operation.capsule());
    }).detach();
  }
}

}  // namespace godwit::daemon
