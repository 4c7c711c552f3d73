#include "migrate/resume.h"

#include <errno.h>
#include <map>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/log.h"
#include "capsule/shell.h"
#include "memory/source_memory.h"
#include "memory/target_memory.h"
#include "migrate/commit_record.h"
#include "migrate/fault_keeper.h"
#include "migrate/limits.h"
#include "sys/proc.h"
#include "transport/link.h"
#include "wire/migrate.pb.h"

namespace godwit::migrate {
namespace {

constexpr std::int64_t message_ms_max = 60'000;
// Runs in one message: some 12 bytes each.
constexpr int runs_per_message = 1 << 20;
constexpr std::uint64_t drain_round = 1;  // The only one on these streams.

// Processes of the tree, by their pids in the capsule.
Result<std::map<memory::SpaceId, pid_t>> node_pids(capsule::Shell& shell) {
  std::map<memory::SpaceId, pid_t> out;
  for (pid_t pid : TRY(shell.tree().pids())) {
    Result<sys::ProcStatus> status = sys::read_status(pid);
    if (!status.ok() && status.error().code() == Errc::tracee_gone) continue;
    if (!status.ok()) return std::move(status).error();
    if (!status->ns_tgid.empty()) out[static_cast<memory::SpaceId>(status->ns_tgid.back())] = pid;
  }
  return out;
}

Result<CommitRecord> open_record(const std::string& path, bool durable, Epoch epoch,
                                 std::uint32_t state) {
  CommitRecord record = TRY(CommitRecord::open(path, durable));
  RecordContent content = TRY(record.read());
  if (content.epoch != epoch || content.state != state)
    return make_error(Errc::refused, "{} is in state {} of epoch {}", path, content.state,
                      content.epoch);
  return record;
}

class Server {
 public:
  Server(const NodeEnv& env, const wire::ServeOrder& order, EventSink& sink)
      : env_(env), order_(order), id_{order.capsule()}, reporter_(sink), memory_({}) {}

  wire::Report run() {
    Result<void> served = serve();
    reporter_.report().set_outcome(served.ok() ? wire::Report::MOVED
                                   : lost_     ? wire::Report::LOST
                                               : wire::Report::IN_DOUBT);
    if (!served.ok()) reporter_.report().set_reason(served.error().what());
    return reporter_.finish();
  }

 private:
  Result<void> serve();
  Result<void> connect();
  Result<std::vector<wire::Missing>> learn_missing();
  Result<void> hold(capsule::Shell& shell, const std::vector<wire::Missing>& missing);

  const NodeEnv& env_;
  const wire::ServeOrder& order_;
  CapsuleId id_;
  Reporter reporter_;
  bool lost_ = false;  // And the target knows.
  memory::SourceMemory memory_;
  transport::Link control_, urgent_;
  std::vector<transport::Link> data_;
};

Result<void> Server::serve() {
  reporter_.phase("connect");
  const Epoch epoch{order_.epoch()};
  constexpr auto given_up = static_cast<std::uint32_t>(SourceState::given_up);
  CommitRecord journal = TRY(open_record(journal_path(env_, id_), false, epoch, given_up));
  TRY(connect());
  const std::vector<wire::Missing> missing = TRY(learn_missing());
  Result<capsule::Shell> opened = capsule::Shell::open(env_, id_);
  Result<void> held = opened.ok() ? hold(*opened, missing) : Result<void>(Error(opened.error()));
  // Nobody but a dead init refuses connections. Whatever else fails here may go well next time, and
  // must not end a program.
  const bool gone = !held.ok() && (held.error().code() == Errc::tracee_gone ||
                                   held.error().sys_errno() == ECONNREFUSED);
  if (!held.ok() && !gone) return held;
  wire::ToTarget answer;
  answer.mutable_serving()->set_lost(gone ? held.error().what() : "");
  TRY(control_.send(answer));
  // The copy was frozen, and is gone all the same: somebody killed it, or its init.
  lost_ = gone;
  if (lost_) {
    TRY(journal.change(epoch, given_up, static_cast<std::uint32_t>(SourceState::released)));
    if (opened.ok()) TRY(opened->destroy());
    return std::move(held).error().with("the frozen copy");
  }
  capsule::Shell& shell = *opened;
  reporter_.phase("drain");
  std::vector<int> streams;
  for (const transport::Link& link : data_) streams.push_back(link.fd());
  memory::DrainStats stats = TRY(memory_.serve(urgent_.fd(), streams, drain_round));
  reporter_.report().set_bytes_sent(stats.bytes);
  reporter_.report().set_drain_us(stats.us);
  wire::ToSource reply;
  TRY(control_.receive(reply, message_ms_max).with("target"));
  if (!reply.has_drained())
    return make_error(Errc::peer_lost, "the target: {}", reply.failed().reason());
  reporter_.phase("release");
  TRY(journal.change(epoch, given_up, static_cast<std::uint32_t>(SourceState::released)));
  if (Result<void> gone = shell.destroy(); !gone.ok())
    LOG(error, "release: {}", gone.error().what());
  return {};
}

Result<void> Server::connect() {
  transport::Token token = TRY(transport::token_from_bytes(order_.token()));
  auto link = [&](transport::LinkKind kind, std::uint32_t index) {
    return transport::connect(order_.target_address(),
                              static_cast<std::uint16_t>(order_.target_port()), token, kind, index,
                              {});
  };
  control_ = TRY(link(transport::LinkKind::control, 0));
  const std::uint32_t streams = order_.streams() > 0 ? order_.streams() : default_streams;
  for (std::uint32_t i = 0; i < streams; ++i)
    data_.push_back(TRY(link(transport::LinkKind::data, i)));
  urgent_ = TRY(link(transport::LinkKind::urgent, 0));
  return {};
}

Result<std::vector<wire::Missing>> Server::learn_missing() {
  std::vector<wire::Missing> parts;
  while (true) {
    wire::ToSource message;
    TRY(control_.receive(message, message_ms_max).with("target"));
    if (!message.has_missing())
      return make_error(Errc::peer_lost, "the target: {}", message.failed().reason());
    if (message.missing().page_size() != message.missing().pages_size())
      return make_error(Errc::invalid, "{} first pages, {} counts", message.missing().page_size(),
                        message.missing().pages_size());
    parts.push_back(std::move(*message.mutable_missing()));
    if (parts.back().last()) return parts;
  }
}

// Whether everything that is missing there is held here.
Result<void> Server::hold(capsule::Shell& shell, const std::vector<wire::Missing>& missing) {
  for (const auto& [space, pid] : TRY(node_pids(shell))) TRY(memory_.add_process(space, pid));
  for (const wire::Missing& part : missing) {
    memory::PageSet pages;
    constexpr std::uint64_t end = (1ull << 47) / page_bytes;
    for (int i = 0; i < part.page_size(); ++i) {
      if (part.page(i) > end || part.pages(i) > end)
        return make_error(Errc::invalid, "missing pages {:#x}+{:#x}", part.page(i), part.pages(i));
      pages.add(part.page(i), part.pages(i));
    }
    if (!pages.empty()) TRY(memory_.set_pending(part.space(), pages));
  }
  return {};
}

class Successor {
 public:
  Successor(const NodeEnv& env, const wire::ResumeOrder& order, EventSink& sink)
      : env_(env), order_(order), id_{order.capsule()}, sink_(sink), reporter_(sink) {}

  wire::Report run();

 private:
  Result<void> inherit();
  Result<void> accept();
  Result<void> tell_missing();
  Result<void> hear_serving();
  Result<void> drain();
  Result<void> kill();

  const NodeEnv& env_;
  const wire::ResumeOrder& order_;
  CapsuleId id_;
  EventSink& sink_;
  Reporter reporter_;
  std::optional<CommitRecord> record_;
  std::optional<transport::Listener> listener_;
  std::optional<capsule::Shell> shell_;
  transport::Link control_, urgent_;
  std::vector<transport::Link> data_;
  std::optional<memory::TargetMemory> memory_;
  bool inheriting_ = false;
  bool lost_ = false;  // The source has no more pages.
};

wire::Report Successor::run() {
  auto all = [&]() -> Result<void> {
    TRY(inherit());
    TRY(accept());
    TRY(tell_missing());
    TRY(hear_serving());
    return drain();
  };
  Result<void> outcome = all();
  wire::Report& report = reporter_.report();
  report.set_outcome(outcome.ok() ? wire::Report::MOVED : wire::Report::IN_DOUBT);
  if (outcome.ok()) return reporter_.finish();
  report.set_reason(outcome.error().what());
  const Errc code = outcome.error().code();
  const bool orphaned = inheriting_ && (code == Errc::invalid || code == Errc::unsupported ||
                                        code == Errc::not_found);
  if (orphaned || lost_) {
    report.set_outcome(wire::Report::LOST);
    if (orphaned)
      report.set_reason(fmt::format("its pager died, and nobody can go on: {}", report.reason()));
    if (Result<void> killed = kill(); !killed.ok()) {
      LOG(error, "kill: {}", killed.error().what());
      report.set_outcome(wire::Report::IN_DOUBT);
    }
  }
  return reporter_.finish();
}

Result<void> Successor::inherit() {
  reporter_.phase("inherit");
  record_ = TRY(open_record(grant_path(env_, id_), true, Epoch{order_.epoch()},
                            static_cast<std::uint32_t>(TargetState::draining)));
  shell_ = TRY(capsule::Shell::open(env_, id_));
  transport::Token token = TRY(transport::token_from_bytes(order_.token()));
  listener_ = TRY(transport::Listener::open(order_.listen_address(), 0, token, {}));
  memory_.emplace(memory::TargetMemory::Options{
      .lookup = [](memory::SpaceId space) -> Result<memory::SpaceTarget> {
        return make_error(Errc::invalid, "no page of space {:#x} is missing", space);
      },
      .drop = {}});
  return {};
}

Result<void> Successor::accept() {
  reporter_.phase("accept");
  TRY(sink_.listening(listener_->port()).with("the daemon"));
  const std::uint32_t streams = order_.streams() > 0 ? order_.streams() : default_streams;
  const std::int64_t deadline_us = monotonic_us() + connect_ms_max * 1000;
  while (!control_.valid() || !urgent_.valid() || data_.size() < streams) {
    const std::int64_t left_ms = (deadline_us - monotonic_us()) / 1000;
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
        data_.push_back(std::move(link));
        break;
    }
  }
  memory::TargetMemory::Keeper keeper = TRY(fault_keeper(env_, id_));
  std::map<memory::SpaceId, pid_t> pids = TRY(node_pids(*shell_));
  inheriting_ = true;
  TRY(memory_->resume_pager(urgent_.fd(), std::move(keeper), pids));
  inheriting_ = false;
  for (const transport::Link& link : data_) TRY(memory_->add_stream(link.fd()));
  return {};
}

Result<void> Successor::tell_missing() {
  wire::ToSource message;
  for (const auto& [space, missing] : memory_->missing_at_source()) {
    wire::Missing* part = message.mutable_missing();
    part->set_space(space);
    for (memory::PageRun run = missing.next_run(0); run.pages != 0;
         run = missing.next_run(run.end())) {
      part->add_page(run.page);
      part->add_pages(run.pages);
      if (part->page_size() < runs_per_message) continue;
      TRY(control_.send(message));
      part->clear_page();
      part->clear_pages();
    }
    TRY(control_.send(message));
    message.Clear();
  }
  message.mutable_missing()->set_last(true);
  return control_.send(message);
}

Result<void> Successor::hear_serving() {
  wire::ToTarget message;
  TRY(control_.receive(message, message_ms_max).with("source"));
  if (!message.has_serving())
    return make_error(Errc::invalid, "the source doesn't say whether it serves");
  if (message.serving().lost().empty()) return {};
  lost_ = true;
  return make_error(Errc::peer_lost, "the source: {}", message.serving().lost());
}

Result<void> Successor::drain() {
  reporter_.phase("drain");
  memory::PagerStats stats = TRY(memory_->wait_drained(drain_round, drain_ms_max));
  constexpr auto granted = static_cast<std::uint32_t>(TargetState::granted);
  std::uint32_t stands = TRY(record_->change(
      Epoch{order_.epoch()}, static_cast<std::uint32_t>(TargetState::draining), granted));
  INVARIANT(stands == granted, "state={}", stands);
  TRY(memory_->release_pager());
  wire::ToSource reply;
  reply.mutable_drained()->set_faults(stats.faults);
  reply.mutable_drained()->set_fault_p50_us(stats.fault_p50_us);
  reply.mutable_drained()->set_fault_p99_us(stats.fault_p99_us);
  return control_.send(reply);
}

// The processes first: once init is gone, nobody holds the userfaultfds, and zeros could be read.
Result<void> Successor::kill() {
  TRY(shell_->tree().kill_all());
  TRY(shell_->destroy());
  // The copy on the source is older than what others saw: it must not go on either.
  TRY(record_->change(Epoch{order_.epoch()}, static_cast<std::uint32_t>(TargetState::draining),
                      static_cast<std::uint32_t>(TargetState::granted)));
  return {};
}

}  // namespace

wire::Report run_serve(const NodeEnv& env, const wire::ServeOrder& order, EventSink& sink) {
  return Server(env, order, sink).run();
}

wire::Report run_resume(const NodeEnv& env, const wire::ResumeOrder& order, EventSink& sink) {
  return Successor(env, order, sink).run();
}

}  // namespace godwit::migrate
