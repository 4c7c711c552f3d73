#include "migrate/source.h"

#include <sys/user.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/clock.h"
#include "base/guard.h"
#include "base/io.h"
#include "base/log.h"
#include "capsule/shell.h"
#include "capture/describe.h"
#include "capture/freeze.h"
#include "memory/dirty_tracker.h"
#include "memory/source_memory.h"
#include "migrate/capsule_files.h"
#include "migrate/capsule_network.h"
#include "migrate/commit_record.h"
#include "migrate/eager_pages.h"
#include "migrate/exec_watches.h"
#include "migrate/file_identity.h"
#include "migrate/round_policy.h"
#include "migrate/shell_adapter.h"
#include "migrate/target_links.h"
#include "migrate/unknown_registers.h"
#include "restore/restorer.h"
#include "sys/kernel_features.h"
#include "sys/proc.h"
#include "sys/thread_priority.h"
#include "sys/vdso.h"
#include "transport/link.h"
#include "wire/migrate.pb.h"

namespace godwit::migrate {
namespace {

// How long it may take in the freeze before we rather go on here.
constexpr std::int64_t finish_ms_max = 60'000;
// After the grant was sent: then the doubt is the daemon's, which asks as long as it takes. (A cut
// link is noticed sooner.)
constexpr std::int64_t running_ms_max = 60'000;

constexpr int relay_attempts_max = 3;

constexpr int announcements_max = 16;
constexpr std::uint64_t announced_pages_few = 4096;  // 0.6 ms of the freeze.

// A running program can remove files faster than we describe it, but not forever.
constexpr int describe_attempts_max = 40;

// What happens between sockets in the freeze takes its time outside of it.
constexpr std::int64_t busy_us_max = 5'000'000;

class Source {
 public:
  Source(const NodeEnv& env, const wire::SourceOrder& order, EventSink& sink)
      : env_(env),
        order_(order),
        id_{order.capsule()},
        epoch_{order.epoch()},
        reporter_(sink),
        memory_({.pause = [this](bool stop) { return pause(stop); }}) {}

  wire::Report run();

 private:
  // The phases, in order. Each leaves the capsule running here if it fails, up to give_up.
  Result<void> open();
  Result<void> preflight();
  Result<void> check_kernel();
  Result<void> connect();
  Result<void> prepare();
  Result<void> arm();
  Result<void> pause(bool stop);
  Result<void> rounds();
  Result<void> announce();
  Result<void> move();
  Result<void> stop_and_move();
  Result<void> check_fresh(capture::FrozenTree& tree);
  Result<void> copy_frozen(capture::FrozenTree& tree, bool postcopy);
  Result<void> commit(capture::FrozenTree& tree);
  Result<void> drain();
  Result<void> release();
  void relay_goes_on();

  Result<std::vector<std::string>> send_prepare(image::Capsule image);
  Result<void> survey(image::Capsule& image, const PidMap& node_pids, const Places& places = {});
  Result<void> add_spaces(const image::Capsule& image, const PidMap& node_pids);
  Result<void> follow_changes();
  Result<memory::RoundStats> send_round(memory::RoundKind kind, std::int64_t ack_timeout_ms,
                                        std::vector<memory::RoundOptions::Range> eager = {});
  Error refused(const std::vector<std::string>& reasons) const;
  void note_round(const memory::RoundStats& stats);
  void conclude(const Error& error);

  const NodeEnv& env_;
  const wire::SourceOrder& order_;
  CapsuleId id_;
  Epoch epoch_;
  Reporter reporter_;

  std::optional<capsule::Shell> shell_;
  std::optional<CapsuleNetwork> network_;
  std::optional<capture::TreeRef> tree_;
  std::optional<CommitRecord> journal_;
  std::optional<FileIdentity> identity_;
  std::optional<CapsuleFiles> files_;
  TargetLinks target_;
  std::optional<capture::FrozenTree> paused_;  // While soft-dirty bits are read.
  memory::SourceMemory memory_;
  std::map<memory::SpaceId, pid_t> space_pids_;  // As this node sees them.
  std::set<memory::SpaceId> file_spaces_;
  memory::Tracking tracking_;
  std::vector<sys::InterruptedSleep> sleeps_;
  ExecWatches watches_;
  image::Capsule prepared_;             // What the target has built so far.
  std::set<std::uint32_t> sent_files_;  // Private files whose present content the target has.
  std::uint64_t next_round_ = 0;
  std::int64_t frozen_at_us_ = 0;
  bool given_up_ = false;
  bool postcopy_ = false;
  bool leave_vdso_ = true;
  std::uint64_t kernel_needs_ = 0, target_kernel_features_ = 0;
  std::string target_features_;
};

wire::Report Source::run() {
  auto all = [&]() -> Result<void> {
    TRY(open());
    TRY(preflight());
    TRY(connect());
    TRY(prepare());
    TRY(rounds());
    TRY(move());
    if (postcopy_) TRY(drain());
    return release();
  };
  Result<void> outcome = all();
  if (!outcome.ok() && !given_up_) outcome = target_.hear_out(std::move(outcome).error());
  if (outcome.ok())
    reporter_.report().set_outcome(wire::Report::MOVED);
  else
    conclude(outcome.error());
  return reporter_.finish();
}

// Says where the capsule is now. By the time we get here, guards have put things back.
void Source::conclude(const Error& error) {
  wire::Report& report = reporter_.report();
  report.set_reason(error.what());
  if (error.code() == Errc::refused && report.reasons().empty()) report.add_reasons(error.what());
  if (!given_up_) {
    report.set_outcome(wire::Report::STAYED);
    target_.say_that_we_stay(error);
    if (journal_) {
      auto kept = journal_->change(epoch_, static_cast<std::uint32_t>(SourceState::attempting),
                                   static_cast<std::uint32_t>(SourceState::kept));
      if (!kept.ok()) LOG(error, "journal: {}", kept.error().what());
    }
    return;
  }
  report.set_outcome(wire::Report::IN_DOUBT);
}

Error Source::refused(const std::vector<std::string>& reasons) const {
  std::string all;
  for (const std::string& reason : reasons) all += (all.empty() ? "" : "; ") + reason;
  for (const std::string& reason : reasons) {
    // Kept apart for `can-migrate` and --json.
    const_cast<Reporter&>(reporter_).report().add_reasons(reason);
  }
  return Error(Errc::refused, all);
}

Result<void> Source::open() {
  reporter_.phase("preflight");
  reporter_.report().set_mode(order_.mode());
  shell_ = TRY(capsule::Shell::open(env_, id_));
  network_.emplace(*shell_);
  tree_ = TRY(tree_of(*shell_));
  tree_->connections = &*network_;
  std::string root = fmt::format("/proc/{}/root", shell_->init_pid());
  std::vector<std::string> shared(order_.shared_dirs().begin(), order_.shared_dirs().end());
  identity_.emplace(root, std::move(shared), hash_dir(env_));
  files_.emplace(root);
  sleeps_ = noted_sleeps(env_, id_);
  // From here our death is somebody's business: the record says who we are.
  RecordContent record;
  record.state = static_cast<std::uint32_t>(SourceState::attempting);
  record.epoch = epoch_;
  record.boot = order_.target_boot();
  record.worker_pid = ::getpid();
  record.worker_start_ticks = TRY(process_start_ticks(::getpid()));
  journal_ = TRY(CommitRecord::create(journal_path(env_, id_), record, false));
  return {};
}

Result<void> Source::preflight() {
  watches_.add(TRY(shell_->tree().pids()));
  std::vector<std::string> reasons = TRY(capture::preflight(*tree_));
  if (reasons.empty()) reasons = TRY(capture::preflight_inside(*tree_, sleeps_, &kernel_needs_));
  if (!reasons.empty()) return refused(reasons);
  return {};
}

Result<void> Source::connect() {
  reporter_.phase("connect");
  TRY(target_.connect(order_));
  reporter_.watch([this] { return transport::bytes_acknowledged(target_.streams()); });
  wire::ToSource hello;
  TRY(target_.expect(hello, wire::ToSource::kHello, prepare_ms_max));
  leave_vdso_ = hello.hello().vdso_build_id() != TRY(sys::own_vdso_build_id());
  target_features_ = hello.hello().cpu_features();
  target_kernel_features_ = hello.hello().kernel_features();
  return check_kernel();
}

Result<void> Source::check_kernel() {
  std::vector<std::string> reasons;
  for (const std::string& feature :
       sys::kernel_feature_names(kernel_needs_ & ~target_kernel_features_))
    reasons.push_back("the program uses what the target's kernel lacks: " + feature);
  if (!reasons.empty()) return refused(reasons);
  return {};
}

// Processes that have come, or executed another program, since preflight.
Result<void> Source::check_fresh(capture::FrozenTree& tree) {
  std::vector<pid_t> pids;
  for (const capture::FrozenProcess& process : tree.processes()) pids.push_back(process.pid);
  const std::set<pid_t> fresh = watches_.fresh(pids);
  if (fresh.empty()) return {};
  std::vector<std::string> reasons = TRY(capture::preflight(*tree_, fresh));
  if (reasons.empty())
    reasons = TRY(capture::preflight_inside(*tree_, tree, fresh, &kernel_needs_));
  if (!reasons.empty()) return refused(reasons);
  const std::vector<pid_t> known(fresh.begin(), fresh.end());
  watches_.add(known);
  return check_kernel();
}

// The answer: the target's reasons against it; then it is as before.
Result<std::vector<std::string>> Source::send_prepare(image::Capsule image) {
  wire::ToTarget message;
  *message.mutable_prepare()->mutable_so_far() = image;
  message.mutable_prepare()->set_frozen(frozen_at_us_ != 0);
  TRY(target_.send(message));
  wire::ToSource reply;
  TRY(target_.expect(reply, wire::ToSource::kPrepared, prepare_ms_max));
  std::vector<std::string> reasons;
  for (const std::string& reason : reply.prepared().reasons())
    reasons.push_back("the target: " + reason);
  if (!reasons.empty()) return reasons;
  for (const image::Process& process : image.processes())
    memory_.set_target_layout(static_cast<memory::SpaceId>(process.pid()),
                              memory::content_areas(process.mm()));
  prepared_ = std::move(image);
  return reasons;
}

// Spaces follow the image: what is new is added, what is gone is removed.
Result<void> Source::add_spaces(const image::Capsule& image, const PidMap& node_pids) {
  std::set<memory::SpaceId> wanted;
  for (const image::Process& process : image.processes()) {
    auto space = static_cast<memory::SpaceId>(process.pid());
    wanted.insert(space);
    auto pid = node_pids.find(process.pid());
    if (pid == node_pids.end())
      return make_error(Errc::tracee_gone, "process {} is gone", process.pid());
    pid_t& known = space_pids_[space];
    if (memory_.has_space(space) && known != pid->second)
      return make_error(Errc::refused, "process {} is another one than it was: try again",
                        process.pid());
    known = pid->second;
    if (memory_.has_space(space)) continue;
    Result<void> added = memory_.add_process(space, pid->second);
    // The next look doesn't find it any more.
    if (frozen_at_us_ == 0 && !added.ok() && sys::is_exiting(pid->second)) continue;
    TRY(std::move(added));
  }
  for (const image::PrivateFile& file : image.private_files()) {
    if (file.space() == 0 || sent_files_.contains(file.id())) continue;
    wanted.insert(file.space());
    if (memory_.has_space(file.space())) continue;
    Result<UniqueFd> content = files_->open(file.id());
    // The running program has removed it since; the next look doesn't find it any more.
    if (frozen_at_us_ == 0 && !content.ok() && content.error().sys_errno() == ENOENT) continue;
    TRY(memory_.add_file(file.space(), TRY(std::move(content))));
    file_spaces_.insert(file.space());
  }
  // Also those of descriptions that never became the target's.
  auto gone = [&](memory::SpaceId space) {
    if (wanted.contains(space)) return false;
    memory_.remove_space(space);
    return true;
  };
  std::erase_if(space_pids_, [&](const auto& known) { return gone(known.first); });
  std::erase_if(file_spaces_, gone);
  return {};
}

// Completes a description: private files, and which files of the target must be the same.
Result<void> Source::survey(image::Capsule& image, const PidMap& node_pids, const Places& places) {
  *image.mutable_spec() = shell_->spec();
  std::map<std::uint32_t, bool> unchanged = TRY(files_->collect(image, node_pids, places));
  std::erase_if(sent_files_, [&](std::uint32_t id) { return !unchanged.contains(id); });
  std::vector<std::string> reasons;
  TRY(identity_->identify(image, reasons));
  if (!reasons.empty()) return refused(reasons);
  return add_spaces(image, node_pids);
}

// The target's mappings and files follow those of the running program, which removes and replaces
// files meanwhile: only what is still so at a second look is a reason against the move.
Result<void> Source::follow_changes() {
  std::vector<std::string> reasons;
  std::set<std::string> files;
  for (int attempt = 1;; ++attempt) {
    capture::LiveDescription live = TRY(capture::describe_live(*tree_));
    Result<void> surveyed = survey(live.capsule, live.node_pids);
    const bool last = attempt == describe_attempts_max;
    if (!surveyed.ok() && (surveyed.error().sys_errno() != ENOENT || last)) return surveyed;
    if (!surveyed.ok()) continue;
    std::set<std::string> files_now = shared_files(live.capsule);
    std::vector<std::string> now = TRY(send_prepare(std::move(live.capsule)));
    if (now.empty()) return {};
    if (last || (now == reasons && files_now == files)) return refused(now);
    reasons = std::move(now), files = std::move(files_now);
  }
}

Result<void> Source::prepare() {
  reporter_.phase("prepare");
  const std::vector<pid_t> pids = TRY(shell_->tree().pids());
  if (pids.empty()) return make_error(Errc::tracee_gone, "the program has ended");
  TRY(target_.compare_clocks(pids.front()));
  return follow_changes();
}

// One short freeze: each process makes a userfaultfd and we fetch it. Everything else about
// tracking happens while the program runs.
Result<void> Source::arm() {
  std::map<pid_t, UniqueFd> uffds;
  if (memory::uffd_tracking_supported()) {
    capture::FrozenTree tree =
        TRY(capture::freeze(*tree_, {.measure_sleeps = true, .known_sleeps = sleeps_}));
    TRY(check_fresh(tree));  // Now: what is tracked looks like one with a userfaultfd of its own.
    for (capture::FrozenProcess& process : tree.processes())
      uffds[process.pid] = TRY(capture::make_userfaultfd(tree, process));
    TRY(tree.thaw(&sleeps_));
    note_sleeps(env_, id_, sleeps_);  // For the next attempt, if this one fails.
  }
  tracking_ = TRY(memory_.arm([&](pid_t pid) -> Result<UniqueFd> {
    auto made = uffds.find(pid);
    if (made == uffds.end()) return make_error(Errc::tracee_gone, "process {} is gone", pid);
    return std::move(made->second);
  }));
  if (!tracking_.reason.empty()) LOG(info, "tracking: {}", tracking_.reason);
  return {};
}

// Soft-dirty bits are read and cleared in two steps, between which nothing may be written.
Result<void> Source::pause(bool stop) {
  if (stop) {
    paused_.emplace(
        TRY(capture::freeze(*tree_, {.measure_sleeps = true, .known_sleeps = sleeps_})));
    return {};
  }
  Result<void> thawed = paused_->thaw(&sleeps_);
  paused_.reset();
  return thawed;
}

void Source::note_round(const memory::RoundStats& stats) {
  wire::Report& report = reporter_.report();
  wire::Round& round = *report.add_rounds();
  round.set_pages(stats.pages);
  round.set_bytes(stats.bytes);
  round.set_us(stats.harvest_us + stats.send_us + stats.ack_us);
  report.set_bytes_sent(report.bytes_sent() + stats.bytes);
  report.set_pages_sent(report.pages_sent() + stats.pages);
  report.set_pages_zero(report.pages_zero() + stats.pages_zero);
}

Result<memory::RoundStats> Source::send_round(memory::RoundKind kind, std::int64_t ack_timeout_ms,
                                              std::vector<memory::RoundOptions::Range> eager) {
  std::uint64_t number = next_round_++;
  if (kind == memory::RoundKind::precopy || kind == memory::RoundKind::announce) {
    // In rounds the target waits for what it is told to wait for; in the freeze it knows from
    // `finish`.
    wire::ToTarget message;
    message.mutable_round()->set_round(static_cast<std::uint32_t>(number));
    TRY(target_.send(message));
  }
  memory::RoundStats stats =
      TRY(memory_.send_round(target_.streams(), {.round = number,
                                                 .kind = kind,
                                                 .ack_timeout_ms = ack_timeout_ms,
                                                 .eager = std::move(eager)}));
  note_round(stats);
  if (kind != memory::RoundKind::announce)
    for (const image::PrivateFile& file : prepared_.private_files())
      if (memory_.has_space(file.space())) sent_files_.insert(file.id());
  return stats;
}

Result<void> Source::rounds() {
  bool wants_rounds = order_.mode() != wire::STOP && order_.mode() != wire::POSTCOPY;
  if (wants_rounds) {
    reporter_.phase("arm");
    TRY(arm());
  }
  RoundPolicy policy(order_.mode(), order_.downtime_target_us(),
                     tracking_.kind != memory::TrackerKind::none, true);
  RoundDecision decision = policy.first();
  while (decision.next == Next::another_round) {
    reporter_.phase(fmt::format("round {}", next_round_));
    std::int64_t began = monotonic_us();
    memory::RoundStats stats = TRY(send_round(memory::RoundKind::precopy, prepare_ms_max));
    std::int64_t us = monotonic_us() - began;
    memory::DirtyEstimate dirty = TRY(memory_.estimate_dirty());
    decision = policy.after({.bytes = stats.bytes, .us = us}, dirty.pages * page_bytes);
    reporter_.report().set_dirty_bytes_per_s(policy.dirty_bytes_per_s());
    reporter_.report().set_link_bytes_per_s(policy.bytes_per_s());
    reporter_.estimate(dirty.pages * page_bytes, policy.dirty_bytes_per_s());
    TRY(follow_changes());  // So that the freeze finds little to change.
  }
  LOG(info, "rounds end: {}", decision.reason);
  reporter_.report().set_reason(decision.reason);
  postcopy_ = decision.next == Next::freeze_for_postcopy;
  // What was asked for isn't always what can be done: without tracking there are no rounds.
  reporter_.report().set_mode(next_round_ > 0 ? (postcopy_ ? wire::HYBRID : wire::PRECOPY)
                                              : (postcopy_ ? wire::POSTCOPY : wire::STOP));
  if (postcopy_ && next_round_ > 0) TRY(announce());
  return {};
}

// What post-copy will fetch anyhow, the target forgets while the program still runs: 0.15 us a
// page. Meanwhile the program writes to others; what is left for the freeze gets less each time.
Result<void> Source::announce() {
  std::uint64_t before = 0;
  for (int time = 0; time < announcements_max; ++time) {
    const memory::RoundStats stats = TRY(send_round(memory::RoundKind::announce, prepare_ms_max));
    const std::uint64_t fresh = stats.pages_pending - std::exchange(before, stats.pages_pending);
    if (fresh <= announced_pages_few) break;
  }
  return {};
}

// Somebody may just be connecting to the program: that takes its course while it runs.
Result<void> Source::move() {
  const std::int64_t until_us = monotonic_us() + busy_us_max;
  while (true) {
    TRY(network_->wait_until_idle(until_us - monotonic_us()));
    Result<void> moved = stop_and_move();
    if (moved.ok() || moved.error().code() != Errc::busy) return moved;
    if (monotonic_us() > until_us)
      return make_error(Errc::refused, "{} all the time: try again", moved.error().what());
    frozen_at_us_ = 0;
  }
}

Result<void> Source::stop_and_move() {
  auto stopping = [this] {
    // On a busy node every wait of ours in the freeze would otherwise be a turn of everybody else.
    if (!sys::raise_thread_priority()) LOG(info, "the freeze runs at ordinary priority");
    reporter_.phase("freeze");
    hurry(*shell_, true);
    frozen_at_us_ = monotonic_us();
  };
  Guard unhurried([&] {
    if (!given_up_) hurry(*shell_, false);
  });
  capture::FrozenTree tree = TRY(capture::freeze(*tree_, {.measure_sleeps = true,
                                                          .known_sleeps = sleeps_,
                                                          .leave_vdso = leave_vdso_,
                                                          .stopping = stopping}));
  // Before the tree goes on.
  Guard traffic([&] {
    if (given_up_) return;
    if (Result<void> flows = network_->release(); !flows.ok())
      LOG(error, "traffic: {}", flows.error().what());
  });
  TRY(check_fresh(tree));
  // From here no page of the tree can change. Every early return thaws, until the capsule is given
  // up: then what this init would still take in for the program could be lost with this copy.
  Guard relay([&] {
    if (!given_up_) relay_goes_on();
  });
  TRY(copy_frozen(tree, postcopy_));
  TRY(commit(tree));
  relay.commit();
  traffic.commit();
  unhurried.commit();
  return {};
}

// Rollback. A program whose output nobody takes does not go on as before: if we can't see to it,
// our death makes it the daemon's business, which recovers the capsule.
void Source::relay_goes_on() {
  Result<void> goes = shell_->init().relay_go();
  for (int attempt = 1; !goes.ok() && attempt < relay_attempts_max; ++attempt) {
    // The answer to a failed request may still be on its way in the old connection.
    auto init = capsule::InitClient::connect(capsule::Shell::socket_path(env_, id_));
    goes = init.ok() ? init->relay_go() : Result<void>(std::move(init).error());
  }
  if (goes.ok() || !sys::read_status(shell_->init_pid()).ok()) return;
  LOG(error, "relay does not go on: {}", goes.error().what());
  std::abort();
}

Result<void> Source::copy_frozen(capture::FrozenTree& tree, bool postcopy) {
  // First: from here init takes no signals for the program, so that none is lost between the look
  // at pending ones and the end of this copy.
  reporter_.phase("relay");
  std::string relay_state = TRY(shell_->init().relay_get());
  reporter_.phase("describe");
  image::Capsule final;
  TRY(tree.describe(final, &prepared_));  // Flags of mappings that haven't changed: as prepared.
  PidMap node_pids;
  for (const capture::FrozenProcess& process : tree.processes())
    node_pids[process.pid_inside] = process.pid;
  reporter_.phase("survey");
  TRY(survey(final, node_pids, tree.private_file_places()));
  TRY(identity_->flush_shared(final));
  std::vector<std::string> reasons =
      TRY(drop_unknown_registers(tree, order_.cpu_features(), target_features_, final));
  if (!reasons.empty()) return refused(reasons);

  reporter_.phase("final copy");
  if (!same_layout(prepared_, final)) {
    const std::vector<std::string> against = TRY(send_prepare(final));
    if (!against.empty()) return refused(against);
  }
  wire::ToTarget message;
  wire::Finish& finish = *message.mutable_finish();
  finish.set_relay_state(std::move(relay_state));
  finish.set_round(static_cast<std::uint32_t>(next_round_));
  finish.set_postcopy(postcopy);
  for (const image::Process& process : final.processes())
    memory_.set_frozen_layout(static_cast<memory::SpaceId>(process.pid()), process.mm());
  auto eager = postcopy ? touched_at_once(final) : std::vector<memory::RoundOptions::Range>{};
  *finish.mutable_final() = std::move(final);
  // The image first: the target works on it while pages still come.
  TRY(target_.send(message));
  TRY(send_round(postcopy ? memory::RoundKind::last_postcopy : memory::RoundKind::last, 0,
                 std::move(eager)));
  reporter_.phase("ready");
  wire::ToSource reply;
  TRY(target_.expect(reply, wire::ToSource::kReady, finish_ms_max));
  return {};
}

Result<void> Source::commit(capture::FrozenTree& tree) {
  reporter_.phase("commit");
  TRY(tree.seal());
  std::uint32_t stands =
      TRY(journal_->change(epoch_, static_cast<std::uint32_t>(SourceState::attempting),
                           static_cast<std::uint32_t>(SourceState::given_up)));
  if (stands != static_cast<std::uint32_t>(SourceState::given_up))
    return make_error(Errc::refused, "the migration was called off");

  // Commit point: once the grant leaves, the target may run even if its reply is lost. From here
  // only the target's record may thaw the source.
  given_up_ = true;
  tree.commit();
  network_->commit();
  wire::ToTarget message;
  message.mutable_grant()->set_epoch(epoch_.value);
  TRY(target_.send(message));
  wire::ToSource reply;
  TRY(target_.expect(reply, wire::ToSource::kRunning, running_ms_max));
  reporter_.report().set_downtime_us(monotonic_us() - frozen_at_us_ - target_.round_trip_us() / 2);
  return {};
}

Result<void> Source::drain() {
  reporter_.phase(drain_phase);
  reporter_.tell();  // So that people's requests go to the target from now on.
  memory::DrainStats stats = TRY(memory_.serve(target_.urgent(), target_.streams(), next_round_++));
  wire::Report& report = reporter_.report();
  report.set_bytes_sent(report.bytes_sent() + stats.bytes);
  report.set_pages_sent(report.pages_sent() + stats.pages_pushed + stats.pages_requested +
                        stats.pages_neighbour);
  report.set_pages_zero(report.pages_zero() + stats.pages_zero);
  report.set_drain_us(stats.us);
  wire::ToSource reply;
  TRY(target_.expect(reply, wire::ToSource::kDrained, finish_ms_max));
  report.set_faults(reply.drained().faults());
  report.set_fault_p50_us(reply.drained().fault_p50_us());
  report.set_fault_p99_us(reply.drained().fault_p99_us());
  return {};
}

Result<void> Source::release() {
  reporter_.phase("release");
  auto released = journal_->change(epoch_, static_cast<std::uint32_t>(SourceState::given_up),
                                   static_cast<std::uint32_t>(SourceState::released));
  if (!released.ok()) LOG(error, "journal: {}", released.error().what());
  // The capsule is on the target; what fails here is cleaning up, which godwitd tries again. It
  // also removes what is left: namespaces and names, which nobody waits for.
  Result<CapsuleId> retired = shell_->retire();
  if (retired.ok()) return {};
  LOG(error, "release: {}", retired.error().what());
  if (Result<void> r = shell_->destroy(); !r.ok()) LOG(error, "release: {}", r.error().what());
  return {};
}

}  // namespace

wire::Report run_source(const NodeEnv& env, const wire::SourceOrder& order, EventSink& sink) {
  return Source(env, order, sink).run();
}

}  // namespace godwit::migrate
