#include "migrate/target.h"

#include <fcntl.h>
#include <unistd.h>

#include <future>
#include <map>
#include <mutex>
#include <optional>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "capsule/shell.h"
#include "memory/target_memory.h"
#include "migrate/commit_record.h"
#include "migrate/fault_keeper.h"
#include "migrate/file_identity.h"
#include "migrate/memory_room.h"
#include "migrate/limits.h"
#include "migrate/shell_adapter.h"
#include "restore/restorer.h"
#include "sys/cpuid.h"
#include "sys/kernel_features.h"
#include "sys/thread_priority.h"
#include "sys/vdso.h"
#include "transport/link.h"
#include "wire/migrate.pb.h"

namespace godwit::migrate {
namespace {

// Between two messages, and for a round: of a large capsule over a slow link.
constexpr std::int64_t round_ms_max = 3'600'000;

class Target {
 public:
  Target(const NodeEnv& env, const wire::TargetOrder& order, EventSink& sink)
      : env_(env),
        order_(order),
        id_{order.capsule()},
        epoch_{order.epoch()},
        sink_(sink),
        reporter_(sink),
        room_(env.cgroup_base, order.memory_limit_bytes()) {}

  wire::Report run();

 private:
  Result<void> reserve();
  Result<void> await_record();
  Result<void> accept();
  Result<void> build();
  Result<void> on_prepare(const wire::Prepare& prepare);
  void be_ready();
  Result<void> on_round(std::uint64_t round);
  Result<void> on_finish(const wire::Finish& finish);
  Result<void> on_grant(Epoch epoch);
  Result<void> drain();
  void give_up(const Error& error);
  void await_control();
  Result<void> on_clock_probe();
  Result<memory::SpaceTarget> lookup(memory::SpaceId space);
  Result<void> drop(memory::SpaceId space, std::span<const memory::PageRun> runs);
  Result<void> publish_targets(const image::Capsule& image);

  const NodeEnv& env_;
  const wire::TargetOrder& order_;
  CapsuleId id_;
  Epoch epoch_;
  EventSink& sink_;
  Reporter reporter_;

  // Made durable (some ms) beside all else that is prepared; there before the source hears that
  // anything is.
  std::future<Result<CommitRecord>> record_made_;
  std::optional<CommitRecord> record_;
  std::optional<transport::Listener> listener_;
  std::optional<capsule::Shell> shell_;
  std::optional<ShellAdapter> adapter_;
  std::optional<restore::Restorer> restorer_;
  std::optional<FileIdentity> identity_;
  MemoryRoom room_;
  transport::Link control_, urgent_;
  std::vector<transport::Link> data_;
  std::mutex targets_mutex_;
  std::map<memory::SpaceId, memory::SpaceTarget> targets_;  // Read by receiving threads.
  // By process space; they live as long as the drain.
  struct Faults {
    UniqueFd copy, fault;
  };
  std::map<memory::SpaceId, Faults> faults_;
  // Ends before all that its threads use. Links that were closed under a thread that receives would
  // stay open, and the source would wait for us as we for it.
  std::optional<memory::TargetMemory> memory_;
  std::uint64_t last_round_ = 0;
  bool postcopy_ = false;
  bool frozen_ = false;  // The program stands.
  bool running_ = false;
};

wire::Report Target::run() {
  auto all = [&]() -> Result<void> {
    TRY(reserve());
    TRY(accept());
    TRY(build());
    if (postcopy_) TRY(drain());
    return {};
  };
  Result<void> outcome = all();
  wire::Report& report = reporter_.report();
  if (outcome.ok()) {
    report.set_outcome(wire::Report::MOVED);
  } else if (running_) {
    // Post-copy that lost its source: faults stay blocked, nothing was filled with zeros. godwitd
    // gives the rest of the drain to another pair of workers, or kills the capsule.
    report.set_outcome(wire::Report::IN_DOUBT);
    report.set_reason(outcome.error().what());
  } else {
    give_up(outcome.error());
  }
  return reporter_.finish();
}

Result<void> Target::await_record() {
  if (record_made_.valid()) record_ = TRY(record_made_.get());
  return {};
}

// Refuse first, on record, then say so: whoever hears it may rely on it.
void Target::give_up(const Error& error) {
  if (Result<void> made = await_record(); !made.ok())
    LOG(error, "no record: {}", made.error().what());
  wire::Report& report = reporter_.report();
  report.set_outcome(wire::Report::FAILED);
  report.set_reason(error.what());
  if (record_) {
    auto stands = record_->change(epoch_, static_cast<std::uint32_t>(TargetState::offered),
                                  static_cast<std::uint32_t>(TargetState::refused));
    if (!stands.ok()) {
      LOG(error, "refusal not recorded: {}", stands.error().what());
      return;  // Nothing is said: the daemon settles it from the record.
    }
  }
  restorer_.reset();
  if (shell_)
    if (Result<void> r = shell_->destroy(); !r.ok()) LOG(error, "destroy: {}", r.error().what());
  if (!control_.valid()) await_control();
  if (!control_.valid()) return;
  wire::ToSource message;
  message.mutable_failed()->set_reason(error.what());
  message.mutable_failed()->set_refused(error.code() == Errc::refused);
  if (Result<void> sent = control_.send(message); !sent.ok())
    LOG(info, "source not told: {}", sent.error().what());
}

// The source was told that we listen, and connects at once: it shall hear why in vain.
void Target::await_control() {
  const std::int64_t deadline_us = monotonic_us() + last_words_ms_max * 1000;
  while (listener_ && !control_.valid() && monotonic_us() < deadline_us) {
    Result<transport::Link> link = listener_->accept((deadline_us - monotonic_us()) / 1000);
    if (!link.ok()) return;
    if (link->kind() == transport::LinkKind::control) control_ = std::move(link).value();
  }
}

Result<void> Target::reserve() {
  reporter_.phase("reserve");
  RecordContent content;
  content.state = static_cast<std::uint32_t>(TargetState::offered);
  content.epoch = epoch_;
  content.boot = order_.boot();
  content.worker_pid = ::getpid();
  content.worker_start_ticks = TRY(process_start_ticks(::getpid()));
  record_made_ = std::async(std::launch::async, [this, content] {
    return CommitRecord::create(grant_path(env_, id_), content, true);
  });
  transport::Token token = TRY(transport::token_from_bytes(order_.token()));
  listener_ = TRY(transport::Listener::open(order_.listen_address(), 0, token, {}));
  TRY(sink_.listening(listener_->port()).with("the daemon"));

  shell_ = TRY(capsule::Shell::create(env_, order_.spec(), CapsuleId{order_.spare_shell()}));
  std::vector<std::string> shared(order_.shared_dirs().begin(), order_.shared_dirs().end());
  identity_.emplace(fmt::format("/proc/{}/root", shell_->init_pid()), std::move(shared),
                    hash_dir(env_));
  adapter_.emplace(*shell_);
  restorer_.emplace(TRY(restore::Restorer::create(*adapter_)));
  memory_.emplace(memory::TargetMemory::Options{
      .lookup = [this](memory::SpaceId space) { return lookup(space); },
      .drop = [this](memory::SpaceId space,
                     std::span<const memory::PageRun> runs) { return drop(space, runs); },
      .room = [this](std::uint64_t bytes) { return room_.take(bytes); }});
  return {};
}

Result<void> Target::accept() {
  reporter_.phase("accept");
  std::uint32_t streams = order_.streams() > 0 ? order_.streams() : default_streams;
  std::int64_t deadline_us = monotonic_us() + connect_ms_max * 1000;
  while (!control_.valid() || !urgent_.valid() || data_.size() < streams) {
    std::int64_t left_ms = (deadline_us - monotonic_us()) / 1000;
    if (left_ms <= 0) return make_error(Errc::timeout, "the source did not connect");
    transport::Link link = TRY(listener_->accept(left_ms));
    switch (link.kind()) {
      case transport::LinkKind::control:
        control_ = std::move(link);
        break;
      case transport::LinkKind::urgent:
        urgent_ = std::move(link);
        break;
      case transport::LinkKind::data:
        TRY(memory_->add_stream(link.fd()));
        data_.push_back(std::move(link));
        break;
    }
  }
  wire::ToSource hello;
  hello.mutable_hello()->set_cpu_features(order_.cpu_features().empty() ? sys::cpu_features()
                                                                        : order_.cpu_features());
  hello.mutable_hello()->set_kernel_features(sys::kernel_features());
  hello.mutable_hello()->set_vdso_build_id(TRY(sys::own_vdso_build_id()));
  return control_.send(hello);
}

Result<void> Target::build() {
  reporter_.phase("build");
  while (!running_) {
    wire::ToTarget message;
    TRY(control_.receive(message, round_ms_max).with("source"));
    switch (message.message_case()) {
      case wire::ToTarget::kClockProbe:
        TRY(on_clock_probe());
        break;
      case wire::ToTarget::kClocks:
        TRY(restorer_->align_clocks(message.clocks().monotonic_ns(),
                                    message.clocks().boottime_ns()));
        break;
      case wire::ToTarget::kPrepare:
        TRY(on_prepare(message.prepare()));
        break;
      case wire::ToTarget::kRound:
        TRY(on_round(message.round().round()));
        break;
      case wire::ToTarget::kFinish:
        TRY(on_finish(message.finish()));
        break;
      case wire::ToTarget::kGrant:
        TRY(on_grant(Epoch{message.grant().epoch()}));
        break;
      case wire::ToTarget::kAbort:
        return make_error(Errc::cancelled, "the source stopped: {}", message.abort().reason());
      default:
        return make_error(Errc::invalid, "the source sent message {}",
                          static_cast<int>(message.message_case()));
    }
  }
  return {};
}

// At once: what passes between the message's arrival and this look counts as its way here.
Result<void> Target::on_clock_probe() {
  wire::ToSource reply;
  reply.mutable_clock_reply()->set_monotonic_ns(monotonic_ns());
  reply.mutable_clock_reply()->set_boottime_ns(boottime_ns());
  return control_.send(reply);
}

// On receiving threads: only what publish_targets left there.
Result<memory::SpaceTarget> Target::lookup(memory::SpaceId space) {
  std::lock_guard lock(targets_mutex_);
  auto found = targets_.find(space);
  if (found == targets_.end())
    return make_error(Errc::invalid, "pages of space {:#x}, which the image doesn't have", space);
  return found->second;
}

// Receiving threads look spaces up while this one may be changing skeletons; and only this thread
// can make a skeleton do things. So all that they need is made and written down here, before the
// source is told that pages may come.
Result<void> Target::publish_targets(const image::Capsule& image) {
  std::map<memory::SpaceId, memory::SpaceTarget> targets;
  for (const image::Process& process : image.processes()) {
    auto space = static_cast<memory::SpaceId>(process.pid());
    restore::SpaceTarget place = TRY(restorer_->space(space));
    Faults& faults = faults_[space];
    if (!faults.fault.valid()) {
      faults.copy = TRY(restorer_->make_userfaultfd(space, O_CLOEXEC | O_NONBLOCK));
      faults.fault = TRY(restorer_->make_userfaultfd(space, O_CLOEXEC | O_NONBLOCK));
    }
    memory::SpaceTarget& target = targets[space];
    target.pid = place.node_pid;
    target.mem_fd = place.mem_fd;
    target.areas = memory::content_areas(process.mm());
    target.copy_uffd = faults.copy.get();
    target.fault_uffd = faults.fault.get();
  }
  for (const image::PrivateFile& file : image.private_files())
    if (file.space() != 0)
      targets[file.space()].file_fd = TRY(restorer_->space(file.space())).file_fd;
  std::lock_guard lock(targets_mutex_);
  targets_ = std::move(targets);
  return {};
}

Result<void> Target::drop(memory::SpaceId space, std::span<const memory::PageRun> runs) {
  std::vector<restore::MemoryRange> ranges;
  ranges.reserve(runs.size());
  for (const memory::PageRun& run : runs)
    ranges.push_back({.start = run.page * page_bytes, .end = run.end() * page_bytes});
  return restorer_->drop_pages(space, ranges, !frozen_);
}

Result<void> Target::on_prepare(const wire::Prepare& prepare) {
  const image::Capsule& so_far = prepare.so_far();
  if (!prepare.frozen()) sys::lower_thread_priority();
  std::vector<std::string> reasons;
  TRY(identity_->compare(so_far, reasons));
  wire::ToSource reply;
  reply.mutable_prepared()->mutable_reasons()->Assign(reasons.begin(), reasons.end());
  if (!reasons.empty()) return control_.send(reply);
  TRY(restorer_->prepare(so_far));
  TRY(publish_targets(so_far));
  memory_->forget_targets();
  TRY(await_record());
  be_ready();
  return control_.send(reply);
}

// The next message may already be the freeze's. What takes long before it runs at ordinary
// priority: programs here, too, want to go on meanwhile.
void Target::be_ready() {
  if (!sys::raise_thread_priority()) LOG(info, "the restore runs at ordinary priority");
}

Result<void> Target::on_round(std::uint64_t round) {
  reporter_.phase(fmt::format("round {}", round));
  sys::lower_thread_priority();
  TRY(memory_->wait_round(round, round_ms_max));
  be_ready();
  return {};
}

Result<void> Target::on_finish(const wire::Finish& finish) {
  reporter_.phase("relay");
  std::int64_t began_ns = monotonic_ns();
  const image::Capsule& final = finish.final();
  frozen_ = true;
  hurry(*shell_, true);
  TRY(await_record());
  postcopy_ = finish.postcopy();
  last_round_ = finish.round();
  TRY(shell_->init().relay_put(finish.relay_state()));
  reporter_.phase("mappings");
  TRY(restorer_->prepare_final(final));
  reporter_.phase("last pages");
  memory::ReceivedRound received = TRY(memory_->wait_round(finish.round(), round_ms_max));
  // Pages that come after the grant must find room: then nobody could go back any more.
  if (postcopy_) TRY(room_.need(received.pages_pending * page_bytes));
  reporter_.phase("restore");
  TRY(restorer_->finish(final, monotonic_ns() - began_ns));
  reporter_.phase("seal");
  if (postcopy_) {
    TRY(memory_->start_pager(urgent_.fd(), TRY(fault_keeper(env_, id_))));
  }
  TRY(restorer_->seal());
  for (const std::string& note : restorer_->notes()) LOG(warn, "not exact: {}", note);
  wire::ToSource reply;
  reply.mutable_ready()->set_pages(received.pages);
  reply.mutable_ready()->set_finish_us((monotonic_ns() - began_ns) / 1000);
  return control_.send(reply);
}

Result<void> Target::on_grant(Epoch epoch) {
  reporter_.phase("start");
  if (epoch != epoch_)
    return make_error(Errc::refused, "grant for epoch {}, ours is {}", epoch, epoch_);
  // Durable before the first instruction.
  auto granted =
      static_cast<std::uint32_t>(postcopy_ ? TargetState::draining : TargetState::granted);
  std::uint32_t stands =
      TRY(record_->change(epoch_, static_cast<std::uint32_t>(TargetState::offered), granted));
  if (stands != granted)
    return make_error(Errc::refused, "this epoch was refused before its grant came");
  running_ = true;
  // It runs from now on, also if the source doesn't hear of it; so whatever fails, the rest is
  // done.
  Result<void> done = restorer_->start();
  auto also = [&](Result<void> step) {
    if (!step.ok() && done.ok()) done = std::move(step);
  };
  if (done.ok()) {
    wire::ToSource reply;
    reply.mutable_running()->set_epoch(epoch_.value);
    also(control_.send(reply));
  }
  // What isn't needed for the first instruction comes after it.
  hurry(*shell_, false);
  also(adapter_->open_gate());
  also(shell_->init().relay_go());
  reporter_.tell();  // godwitd looks at the record at once, and serves the streams.
  note_sleeps(env_, id_, restorer_->sleeps());
  return done;
}

Result<void> Target::drain() {
  reporter_.phase("drain");
  memory::PagerStats stats = TRY(memory_->wait_drained(last_round_ + 1, drain_ms_max));
  std::uint32_t stands =
      TRY(record_->change(epoch_, static_cast<std::uint32_t>(TargetState::draining),
                          static_cast<std::uint32_t>(TargetState::granted)));
  INVARIANT(stands == static_cast<std::uint32_t>(TargetState::granted), "state={}", stands);
  TRY(memory_->release_pager());
  wire::ToSource reply;
  reply.mutable_drained()->set_faults(stats.faults);
  reply.mutable_drained()->set_fault_p50_us(stats.fault_p50_us);
  reply.mutable_drained()->set_fault_p99_us(stats.fault_p99_us);
  return control_.send(reply);
}

}  // namespace

wire::Report run_target(const NodeEnv& env, const wire::TargetOrder& order, EventSink& sink) {
  return Target(env, order, sink).run();
}

}  // namespace godwit::migrate
