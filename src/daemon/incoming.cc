// Migrations, as target.
// clang-format off: <signal.h> has a macro named as a field of the image.
#include "daemon/migrations.h"
// clang-format on

#include <signal.h>

#include <algorithm>
#include <thread>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread_name.h"
#include "capsule/shell.h"
#include "daemon/accounts.h"
#include "sys/cgroup.h"
#include "sys/cpuid.h"
#include "sys/kernel_features.h"

namespace godwit::daemon {
namespace {

using migrate::TargetState;
using std::chrono::milliseconds;

constexpr std::int64_t listening_ms_max = 45'000;
// How soon it shows here that the capsule was granted.
constexpr std::int64_t grant_poll_ms = 20;
constexpr std::chrono::seconds departure_limit{10};
constexpr std::chrono::seconds drain_look{1};
constexpr std::size_t token_bytes = 32;
// Room that a node keeps when a capsule asks for it: page tables, page cache, godwit itself.
constexpr std::uint64_t memory_margin_bytes = 32 << 20;

std::string random_token() {
  std::string token;
  const std::string hex = random_hex(token_bytes);
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    token.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return token;
}

Result<void> kill_worker(const migrate::RecordContent& worker) {
  if (worker.worker_pid == 0 || !migrate::worker_alive(worker)) return {};
  if (::kill(worker.worker_pid, SIGKILL) != 0 && errno != ESRCH) {
    return os_error(fmt::format("kill({})", worker.worker_pid));
  }
  return {};
}

// Listening, or Done with the reason why not. On a slow machine signs of life come before.
Result<wire::WorkerEvent> first_event(Worker& worker) {
  const std::int64_t until_us = monotonic_us() + listening_ms_max * 1'000;
  while (true) {
    const std::int64_t left_ms = (until_us - monotonic_us()) / 1'000;
    wire::WorkerEvent event = TRY(worker.next_event(std::max<std::int64_t>(left_ms, 0)));
    if (!event.has_progress()) return event;
  }
}

bool has_ended(const HostedPtr& capsule) {
  const std::lock_guard lock(capsule->mutex);
  return capsule->ended();
}

}  // namespace

// An earlier attempt's remains go away by themselves, once its worker has seen its link end.
void Migrations::await_departure(const CapsuleId& id) {
  auto capsule = host_.by_id(id.value);
  if (!capsule) return;
  std::unique_lock lock(capsule->mutex);
  capsule->changed.wait_for(lock, departure_limit, [&] {
    return !capsule->record.incoming() || !capsule->left_to.empty();
  });
}

std::vector<std::string> Migrations::admission(const node::ReserveRequest& request) {
  std::vector<std::string> reasons;
  const auto& spec = request.spec();
  const std::string& here = config_.env.node.value;
  if (!config_.accepts) reasons.push_back(fmt::format("{} takes no capsules (drained)", here));

  const auto node = monitor_.info();
  std::uint64_t inbound_bytes = 0;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, bytes] : reserved_bytes_) inbound_bytes += bytes;
  }
  const std::uint64_t need_bytes =
      node.memory_used_bytes() + inbound_bytes + request.memory_bytes() + memory_margin_bytes;
  if (need_bytes > node.memory_limit_bytes()) {
    reasons.push_back(fmt::format(
        "{} has too little memory: {} MiB are needed, {} of {} MiB are in use and {} on their way",
        here, request.memory_bytes() >> 20, node.memory_used_bytes() >> 20,
        node.memory_limit_bytes() >> 20, inbound_bytes >> 20));
  }
  if (!spec.cpu_features().empty()) {
    auto missing = offered_.ok() ? sys::missing_features(spec.cpu_features(), *offered_)
                                 : Result<std::vector<std::string>>(offered_.error());
    if (!missing.ok())
      reasons.push_back(missing.error().what());
    else
      for (const auto& feature : *missing) {
        reasons.push_back(fmt::format("the processor of {} lacks {}", here, feature));
      }
  }
  if (!request.cpu_features().empty()) {
    auto moved = sys::moved_xsave_parts(request.cpu_features(), sys::cpu_features());
    if (!moved.ok())
      reasons.push_back(moved.error().what());
    else
      for (const auto& part : *moved) {
        reasons.push_back(
            fmt::format("the processor of {} keeps registers differently: {}", here, part));
      }
  }
  for (const auto& feature :
       sys::kernel_feature_names(request.kernel_needs() & ~sys::kernel_features())) {
    reasons.push_back(fmt::format("it uses what the kernel of {} lacks: {}", here, feature));
  }
  if (auto mismatch = account_mismatch(spec.user(), spec.uid()); !mismatch.empty()) {
    reasons.push_back(mismatch + fmt::format(" ({})", here));
  }
  for (const auto& capsule : host_.all()) {
    const std::lock_guard lock(capsule->mutex);
    const auto& other = capsule->record.spec();
    if (capsule->ended()) continue;
    if (other.id() == spec.id()) {
      reasons.push_back(
          fmt::format("{} has a copy of it that is {}", here,
                      capsule->record.incoming() ? "arriving" : capsule->record.state()));
    } else if (other.name() == spec.name()) {
      reasons.push_back(fmt::format("{} has another capsule named {}", here, spec.name()));
    }
  }
  return reasons;
}

Result<std::vector<std::string>> Migrations::missing_files(const node::ReserveRequest& request) {
  wire::WorkerOrder order;
  auto* check = order.mutable_check();
  check->set_capsule(request.spec().id());
  *check->mutable_files() = request.files();
  for (const auto& dir : config_.shared) check->add_shared_dirs(dir);
  const auto report = TRY(spares_.execute(std::move(order)));
  return std::vector<std::string>(report.reasons().begin(), report.reasons().end());
}

Result<node::ReserveReply> Migrations::reserve(const std::string& peer,
                                               const node::ReserveRequest& request) {
  node::ReserveReply reply;
  reply.set_boot(monitor_.boot());
  if (!request.only_check()) await_departure(CapsuleId{request.spec().id()});
  for (auto& reason : admission(request)) reply.add_reasons(std::move(reason));
  if (request.only_check() && request.has_files()) {
    for (auto& reason : TRY(missing_files(request))) reply.add_reasons(std::move(reason));
  }
  if (reply.reasons_size() > 0 || request.only_check()) return reply;

  node::CapsuleRecord record = request.record();
  *record.mutable_spec() = request.spec();
  record.set_incoming(true);
  record.set_source(peer);
  record.set_source_boot(request.boot());
  record.set_epoch(request.epoch());
  record.set_migration(request.migration());
  record.set_state(state::migrating);
  record.clear_note();
  record.clear_worker_pid();
  const std::string token = random_token();
  wire::WorkerOrder order;
  auto* target = order.mutable_target();
  target->set_migration(request.migration());
  target->set_capsule(request.spec().id());
  target->set_epoch(request.epoch());
  *target->mutable_spec() = request.spec();
  target->set_token(token);
  target->set_listen_address(config_.listen_host());
  target->set_source_node(peer);
  for (const auto& dir : config_.shared) target->add_shared_dirs(dir);
  target->set_boot(monitor_.boot());
  target->set_cpu_features(sys::cpu_features());
  const CapsuleId spare = spares_.take_shell();
  target->set_spare_shell(spare.value);
  if (monitor_.emulated()) target->set_memory_limit_bytes(monitor_.info().memory_limit_bytes());

  std::optional<Operation> operation;
  auto started = spares_.start(std::move(order), [&](const Worker& worker) -> Result<void> {
    note_worker(record, worker);
    if (operation) return host_.update(operation->capsule(), [&](auto& r) { r = record; });
    operation.emplace(TRY(host_.arrive(record)));
    const std::lock_guard lock(mutex_);
    reserved_bytes_[request.spec().id()] = request.memory_bytes();
    return {};
  });
  if (!started.ok()) {
    remove_spare(spare);
    if (operation) TRY(host_.forget(operation->capsule()));
    const std::lock_guard lock(mutex_);
    reserved_bytes_.erase(request.spec().id());
    return std::move(started).error();
  }
  std::shared_ptr<Worker> worker = std::move(started).value();
  auto event = first_event(*worker);
  const bool listening = event.ok() && event->has_listening();
  std::string trouble;
  if (listening) {
    reply.set_address(config_.listen_host());
    reply.set_port(event->listening().port());
    reply.set_token(token);
  } else {
    trouble = event.ok() ? event->done().reason() : event.error().what();
    worker->kill();
  }
  std::thread([this, worker, spare, operation = std::move(*operation)]() mutable {
    name_thread("incoming");
    watch_incoming(std::move(operation), worker);
    remove_spare(spare);
    spares_.restock();
  }).detach();
  if (!listening) return make_error(Errc::refused, "worker on {}: {}", config_.env.node, trouble);
  return reply;
}

// If the worker that got it never took it over.
void Migrations::remove_spare(const CapsuleId& spare) {
  if (spare.value.empty()) return;
  if (auto gone = capsule::Shell::destroy(config_.env, spare); !gone.ok())
    LOG(error, "spare shell: {}", gone.error().what());
}

void Migrations::note_grants() {
  for (const auto& capsule : host_.all()) {
    {
      const std::lock_guard lock(capsule->mutex);
      if (!capsule->record.incoming()) continue;
    }
    note_grant(capsule);
  }
}

// True once the record says that the capsule runs here; then it is shown, and its streams are
// served.
bool Migrations::note_grant(const HostedPtr& capsule) {
  const std::lock_guard one(grants_);
  auto record = migrate::CommitRecord::open(migrate::grant_path(config_.env, capsule->id()), true);
  if (!record.ok()) return false;
  const auto content = record->read();
  std::uint64_t epoch = 0;
  std::string source;
  {
    const std::lock_guard lock(capsule->mutex);
    epoch = capsule->record.epoch();
    source = capsule->record.source();
    if (!capsule->record.incoming()) return true;
  }
  if (!content.ok() || content->epoch.value != epoch) return false;
  const auto state = static_cast<TargetState>(content->state);
  if (state != TargetState::granted && state != TargetState::draining) return false;
  if (auto started = host_.started(capsule); !started.ok()) {
    LOG(error, "capsule {} arrived, but: {}", capsule->id(), started.error().what());
  }
  if (state == TargetState::draining) {
    auto noted = host_.update(capsule, [&](auto& r) { r.add_residual(source); });
    if (!noted.ok()) LOG(error, "record of {}: {}", capsule->id(), noted.error().what());
  }
  return true;
}

void Migrations::watch_incoming(Operation operation, std::shared_ptr<Worker> worker) {
  const HostedPtr capsule = operation.capsule();
  bool reported = false, moved = false;
  std::optional<std::string> lost;
  migrate::RecordContent identity;
  {
    const std::lock_guard lock(capsule->mutex);
    identity.worker_pid = capsule->record.worker_pid();
    identity.worker_start_ticks = capsule->record.worker_start_ticks();
  }
  std::int64_t heard_us = monotonic_us();
  while (true) {
    if (worker) {
      auto event = worker->next_event(grant_poll_ms);
      if (event.ok()) heard_us = monotonic_us();
      const bool silent = monotonic_us() - heard_us > config_.worker_silence_ms * 1'000;
      if (silent) LOG(error, "capsule {}: its worker is silent and will be killed", capsule->id());
      if (silent) break;
      reported = event.ok() && event->has_done();
      moved = reported && event->done().outcome() == wire::Report::MOVED;
      if (reported && event->done().outcome() == wire::Report::LOST) lost = event->done().reason();
      if (reported || (!event.ok() && event.error().code() != Errc::timeout)) break;
    } else {
      if (identity.worker_pid == 0 || !migrate::worker_alive(identity)) break;
      std::this_thread::sleep_for(milliseconds(grant_poll_ms));
    }
    note_grant(capsule);
  }
  if (worker) {
    if (!reported) worker->kill();  // Silent but alive would be a second opinion.
    worker->wait_end();
  }
  if (lost) {
    // Its pages died with the source; the worker has seen to it that nothing ran on zeros.
    if (auto dead = host_.ended(capsule, SIGKILL, *lost); !dead.ok()) {
      LOG(error, "capsule {}: {}", capsule->id(), dead.error().what());
    }
  } else {
    end_incoming(capsule, moved);
  }
  const std::lock_guard lock(mutex_);
  reserved_bytes_.erase(capsule->id().value);
}

// The worker is gone. Its record decides what it left.
void Migrations::end_incoming(const HostedPtr& capsule, bool moved) {
  std::uint64_t epoch = 0;
  {
    const std::lock_guard lock(capsule->mutex);
    epoch = capsule->record.epoch();
  }
  auto record = migrate::CommitRecord::open(migrate::grant_path(config_.env, capsule->id()), true);
  auto content = record.ok() ? record->read() : Result<migrate::RecordContent>(record.error());
  auto state = TargetState::refused;  // No record of this epoch: nothing was offered.
  if (content.ok() && content->epoch.value == epoch) {
    state = static_cast<TargetState>(content->state);
    if (state == TargetState::offered) {
      auto now = record->change(Epoch{epoch}, content->state,
                                static_cast<std::uint32_t>(TargetState::refused));
      if (!now.ok()) {
        LOG(error, "record of {}: {}", capsule->id(), now.error().what());
        return;  // Held by its frozen group; the source's question is answered by the record.
      }
      state = static_cast<TargetState>(*now);
    }
  }
  Result<void> done;
  wire::WorkerOrder order;
  order.mutable_recover()->set_capsule(capsule->id().value);
  if (state == TargetState::granted || state == TargetState::draining) {
    if (!moved) {
      // It may have ended between the record and the start: start, which is harmless twice.
      order.mutable_recover()->set_action(wire::RecoverOrder::START);
      if (auto thawed = spares_.execute(std::move(order)); !thawed.ok()) {
        LOG(error, "start of {}: {}", capsule->id(), thawed.error().what());
      }
    }
    note_grant(capsule);
    if (state == TargetState::draining) watch_drain(capsule);
    if (state == TargetState::granted) {
      done = host_.update(capsule, [](auto& r) { r.clear_residual(); });
    }
  } else {
    if (auto gone = capsule::Shell::destroy(config_.env, capsule->id()); !gone.ok()) {
      LOG(error, "what {} left here: {}", capsule->id(), gone.error().what());
    }
    done = host_.forget(capsule);
  }
  if (!done.ok()) LOG(error, "capsule {}: {}", capsule->id(), done.error().what());
}

// Pages are missing and no worker is at it. The source asks for the outcome and so has the drain
// resumed, unless it was rebooted: then the pages are gone, and whoever needs one waits for ever.
void Migrations::watch_drain(const HostedPtr& capsule) {
  {
    const std::lock_guard lock(mutex_);
    if (!drains_watched_.insert(capsule->id().value).second) return;
  }
  std::thread([this, capsule] {
    name_thread("drain watch");
    while (true) {
      {
        std::unique_lock lock(capsule->mutex);
        capsule->changed.wait_for(lock, drain_look);
        if (capsule->ended() || !capsule->left_to.empty() || capsule->record.residual_size() == 0)
          break;
        if (!capsule->operation.empty()) continue;  // A successor is at work.
      }
      if (!source_rebooted(capsule)) continue;
      auto lost = lose(capsule);
      if (lost.ok()) break;
      LOG(error, "capsule {}: {}", capsule->id(), lost.error().what());
    }
    const std::lock_guard lock(mutex_);
    drains_watched_.erase(capsule->id().value);
  }).detach();
}

bool Migrations::source_rebooted(const HostedPtr& capsule) {
  std::string source, boot;
  {
    const std::lock_guard lock(capsule->mutex);
    source = capsule->record.source();
    boot = capsule->record.source_boot();
  }
  auto peer = peers_.find(source);
  if (!peer.ok()) return false;
  auto status = (*peer)->status(node::StatusRequest());
  return status.ok() && !boot.empty() && status->boot() != boot;
}

Result<void> Migrations::lose(const HostedPtr& capsule) {
  auto operation = TRY(host_.begin(capsule, "ended"));
  std::uint64_t epoch = 0;
  std::string source;
  {
    const std::lock_guard lock(capsule->mutex);
    if (capsule->record.residual_size() == 0) return {};
    epoch = capsule->record.epoch();
    source = capsule->record.source();
  }
  // Init holds the missing pages' userfaultfds: it must be the last to end.
  auto tree = TRY(host_.tree(capsule));
  TRY(tree.kill_all());
  auto record =
      TRY(migrate::CommitRecord::open(migrate::grant_path(config_.env, capsule->id()), true));
  TRY(record.change(Epoch{epoch}, static_cast<std::uint32_t>(TargetState::draining),
                    static_cast<std::uint32_t>(TargetState::granted)));
  return host_.ended(capsule, SIGKILL,
                     fmt::format("{} was rebooted while pages of it were still there", source));
}

// The source says that it keeps its copy: the record refuses, and then the worker can only be in
// the way.
Result<node::ReleaseReply> Migrations::release(const node::ReleaseRequest& request) {
  const CapsuleId id{request.capsule()};
  auto record = migrate::CommitRecord::open(migrate::grant_path(config_.env, id), true);
  if (record.ok() && TRY(record->read()).epoch.value == request.epoch()) {
    const auto now =
        TRY(record->change(Epoch{request.epoch()}, static_cast<std::uint32_t>(TargetState::offered),
                           static_cast<std::uint32_t>(TargetState::refused)));
    if (now != static_cast<std::uint32_t>(TargetState::refused)) {
      return make_error(Errc::refused, "{} was granted here", id);
    }
  }
  auto capsule = host_.by_id(id.value);
  if (!capsule) return node::ReleaseReply();
  migrate::RecordContent worker;
  {
    const std::lock_guard lock(capsule->mutex);
    const auto& held = capsule->record;
    if (!held.incoming() || held.epoch() != request.epoch()) return node::ReleaseReply();
    worker.worker_pid = held.worker_pid();
    worker.worker_start_ticks = held.worker_start_ticks();
  }
  TRY(kill_worker(worker));
  return node::ReleaseReply();  // Its end is watched: what it made is removed there.
}

Result<node::OutcomeReply> Migrations::outcome(const node::OutcomeRequest& request) {
  const CapsuleId id{request.capsule()};
  const Epoch epoch{request.epoch()};
  const std::string path = migrate::grant_path(config_.env, id);
  node::OutcomeReply reply;
  reply.set_boot(monitor_.boot());
  auto record = migrate::CommitRecord::open(path, true);
  if (!record.ok() && record.error().code() != Errc::not_found) return std::move(record).error();
  if (!record.ok() || TRY(record->read()).epoch < epoch) {
    // Never offered here. Said for good before it is said.
    migrate::RecordContent refused;
    refused.state = static_cast<std::uint32_t>(TargetState::refused);
    refused.epoch = epoch;
    refused.boot = monitor_.boot();
    TRY(migrate::CommitRecord::create(path, refused, true));
    reply.set_answer(node::OutcomeReply::REFUSED);
    return reply;
  }
  while (true) {
    const auto content = TRY(record->read());
    if (content.epoch != epoch) {
      return make_error(Errc::invalid, "asked for epoch {} of {}, which is at {}", epoch, id,
                        content.epoch);
    }
    const auto step =
        migrate::on_query(static_cast<TargetState>(content.state), content.boot != monitor_.boot());
    if (step.refuse_first) {
      TRY(record->change(epoch, content.state, static_cast<std::uint32_t>(TargetState::refused)));
      continue;
    }
    switch (step.answer) {
      case migrate::Answer::running:
        reply.set_answer(node::OutcomeReply::RUNNING);
        break;
      case migrate::Answer::refused:
        reply.set_answer(node::OutcomeReply::REFUSED);
        break;
      case migrate::Answer::lost:
        reply.set_answer(node::OutcomeReply::LOST);
        break;
      case migrate::Answer::draining:
        return resume_drain(id, epoch);
    }
    return reply;
  }
}

// It ran to its end here.
Result<node::OutcomeReply> Migrations::needs_no_pages(const CapsuleId& id, Epoch epoch) {
  auto record = TRY(migrate::CommitRecord::open(migrate::grant_path(config_.env, id), true));
  TRY(record.change(epoch, static_cast<std::uint32_t>(TargetState::draining),
                    static_cast<std::uint32_t>(TargetState::granted)));
  node::OutcomeReply reply;
  reply.set_boot(monitor_.boot());
  reply.set_answer(node::OutcomeReply::RUNNING);
  return reply;
}

// The source's worker was lost (else it wouldn't ask): ours has nobody to talk to. A new pair goes
// on.
Result<node::OutcomeReply> Migrations::resume_drain(const CapsuleId& id, Epoch epoch) {
  auto capsule = host_.by_id(id.value);
  if (!capsule || has_ended(capsule)) return needs_no_pages(id, epoch);
  migrate::RecordContent worker;
  {
    const std::lock_guard lock(capsule->mutex);
    worker.worker_pid = capsule->record.worker_pid();
    worker.worker_start_ticks = capsule->record.worker_start_ticks();
  }
  TRY(kill_worker(worker));
  // The watcher of the old worker ends with it and gives up the capsule's operation.
  std::optional<Operation> operation;
  const auto until = std::chrono::steady_clock::now() + departure_limit;
  while (!operation) {
    auto begun = host_.begin(capsule, "drained");
    if (begun.ok()) {
      operation.emplace(std::move(begun).value());
    } else if (std::chrono::steady_clock::now() > until) {
      return std::move(begun).error();
    } else {
      std::unique_lock lock(capsule->mutex);
      capsule->changed.wait_for(lock, milliseconds(grant_poll_ms));
    }
  }
  const std::string token = random_token();
  wire::WorkerOrder order;
  auto* resume = order.mutable_resume();
  resume->set_capsule(id.value);
  resume->set_epoch(epoch.value);
  resume->set_token(token);
  resume->set_listen_address(config_.listen_host());
  std::shared_ptr<Worker> fresh = TRY(spares_.start(std::move(order), recorder(capsule)));
  auto event = first_event(*fresh);
  if (!event.ok() || !event->has_listening()) fresh->kill();
  std::thread([this, fresh, operation = std::move(*operation)]() mutable {
    name_thread("drain");
    watch_incoming(std::move(operation), fresh);
  }).detach();
  if (!event.ok()) return std::move(event).error();
  if (!event->has_listening()) return make_error(Errc::refused, "{}", event->done().reason());
  node::OutcomeReply reply;
  reply.set_boot(monitor_.boot());
  reply.set_answer(node::OutcomeReply::DRAINING);
  reply.set_address(config_.listen_host());
  reply.set_port(event->listening().port());
  reply.set_token(token);
  return reply;
}

}  // namespace godwit::daemon
