// Whatever system call of a worker is its last one, or fails: afterwards, by the rules of commit.h
// alone, exactly one copy runs, unharmed, and nothing is left on the other side.
//
// The daemon's part (what it asks, records and orders) is played here, as docs/ENGINE.md tells it.
// GODWIT_EXHAUSTIVE=1 tries every call; otherwise points are spread over each run.
#include <cstdlib>

#include "base/clock.h"

#include "migrate/commit.h"
#include "outer_tracer.h"
#include "two_nodes.h"

namespace godwit {
namespace {

using migrate::Answer;
using migrate::CommitRecord;
using migrate::SourceAction;
using migrate::SourceState;
using migrate::TargetAction;
using migrate::TargetState;

constexpr int points_in_ci = 7;  // Of each mode, side and kind of fault.

enum class Side { source, target };

struct Fault {
  wire::Mode mode;
  Side side;
  int fail_with;  // 0: SIGKILL.
};

class FaultyNodes : public TwoNodes {
 protected:
  NodeEnv& here() { return nodes_[at_].env; }
  NodeEnv& there() { return nodes_[1 - at_].env; }

  void new_program(const std::string& mib = "8") {
    client_.reset();
    output_.clear();
    out_next_ = stdin_next_ = epoch_ = 0;
    ASSERT_NO_FATAL_FAILURE(start_program(
        {tracee("hammer"), "--mib", mib, "--rate-mb-s", "20", "--threads", "3"}));
    ASSERT_EQ(read_line(), "ready");
  }

  // One migration with this fault, brought to its end.
  void attempt(const Fault& fault, OuterTracer::Plan plan, std::int64_t& count, bool& struck) {
    std::optional<OuterTracer> tracer;
    on_start_ = [&](daemon::Worker& worker, bool source) {
      if (source != (fault.side == Side::source)) return;
      Result<OuterTracer> started = OuterTracer::start(worker.pid(), plan);
      ASSERT_OK(started);
      tracer.emplace(std::move(started).value());
    };
    Pair pair;
    reason_.clear();
    // An error: the target died before it listened, and no source was started.
    if (Result<void> started = start_migration(fault.mode, pair); !started.ok())
      reason_ = started.error().what();
    on_start_ = nullptr;
    ASSERT_NO_FATAL_FAILURE(settle(pair.source.get(), pair.target.get()));
    ASSERT_TRUE(tracer.has_value());
    count = tracer->count();
    struck = tracer->struck();
  }

  Result<void> order(const NodeEnv& env, wire::RecoverOrder::Action action) {
    wire::WorkerOrder order;
    order.mutable_recover()->set_capsule(id_.value);
    order.mutable_recover()->set_action(action);
    TRY(daemon::execute(env, std::move(order)));
    return {};
  }

  // As the source's daemon, once its worker is gone, and the target's, when it is asked.
  void settle(daemon::Worker* source, daemon::Worker* target) {
    wire::Report::Outcome outcome = wire::Report::UNKNOWN;
    if (source != nullptr) {
      Result<wire::Report> report = source->finish({}, 120'000);
      if (!report.ok()) source->kill();
      source->wait_end();
      if (report.ok()) {
        outcome = report->outcome();
        reason_ = report->reason();
      }
    }
    if (outcome == wire::Report::MOVED) return end_target(target, false);
    for (int i = 0; i < 20; ++i) {
      SourceState state = SourceState::attempting;
      Result<CommitRecord> journal =
          CommitRecord::open(migrate::journal_path(here(), id_), false);
      bool current = false;
      if (journal.ok()) {
        Result<migrate::RecordContent> content = journal->read();
        ASSERT_OK(content);
        current = content->epoch.value == epoch_;
        if (current) state = static_cast<SourceState>(content->state);
      }
      SourceAction action = migrate::decide(state);
      if (action == SourceAction::ask) {
        Answer answer = Answer::refused;
        ASSERT_NO_FATAL_FAILURE(ask(answer));
        action = migrate::decide(state, answer);
      }
      switch (action) {
        case SourceAction::thaw:
          if (current && state != SourceState::kept)
            ASSERT_OK(journal->change(Epoch{epoch_}, static_cast<std::uint32_t>(state),
                                      static_cast<std::uint32_t>(SourceState::kept)));
          ASSERT_NO_FATAL_FAILURE(end_target(target, true));
          if (outcome != wire::Report::STAYED && current)
            ASSERT_OK(order(here(), wire::RecoverOrder::THAW));
          return;
        case SourceAction::destroy:
          ASSERT_NO_FATAL_FAILURE(end_target(target, false));
          // end_target has changed sides.
          ASSERT_OK(order(there(), wire::RecoverOrder::DESTROY));
          return;
        case SourceAction::serve:
          ASSERT_NO_FATAL_FAILURE(end_target(target, false));
          at_ = 1 - at_;
          ASSERT_NO_FATAL_FAILURE(resume_drain());
          ++drains_resumed_;
          break;
        default: FAIL() << "action " << static_cast<int>(action);
      }
      target = nullptr;
    }
    FAIL() << "not settled";
  }

  void ask(Answer& answer) {
    Result<CommitRecord> record = CommitRecord::open(migrate::grant_path(there(), id_), true);
    ASSERT_OK(record);
    while (true) {
      Result<migrate::RecordContent> content = record->read();
      ASSERT_OK(content);
      ASSERT_EQ(content->epoch.value, epoch_);
      migrate::QueryStep step =
          migrate::on_query(static_cast<TargetState>(content->state), false);
      answer = step.answer;
      if (!step.refuse_first) return;
      ASSERT_OK(record->change(Epoch{epoch_}, content->state,
                               static_cast<std::uint32_t>(TargetState::refused)));
    }
  }

  // The target's worker ends, or is ended; what it left is brought to its conclusion.
  void end_target(daemon::Worker* target, bool released) {
    bool reported = false;
    if (target != nullptr) {
      Result<CommitRecord> record = CommitRecord::open(migrate::grant_path(there(), id_), true);
      if (released && record.ok())
        ASSERT_OK(record->change(Epoch{epoch_}, static_cast<std::uint32_t>(TargetState::offered),
                                 static_cast<std::uint32_t>(TargetState::refused)));
      if (released) target->kill();
      reported = target->finish({}, 60'000).ok();
      if (!reported) target->kill();
      target->wait_end();
    }
    TargetState state = TargetState::refused;
    Result<CommitRecord> record = CommitRecord::open(migrate::grant_path(there(), id_), true);
    if (record.ok()) {
      Result<migrate::RecordContent> content = record->read();
      ASSERT_OK(content);
      if (content->epoch.value == epoch_) state = static_cast<TargetState>(content->state);
    }
    switch (migrate::decide(state, false)) {
      case TargetAction::run:
      case TargetAction::run_and_drain:
        if (target != nullptr && !reported) ASSERT_OK(order(there(), wire::RecoverOrder::START));
        at_ = 1 - at_;
        return;
      default: ASSERT_OK(capsule::Shell::destroy(there(), id_));
    }
  }

  // Both daemons, after the answer `draining`.
  void resume_drain() {
    transport::Token token = transport::random_token();
    std::string bytes(reinterpret_cast<const char*>(token.data()), token.size());
    wire::WorkerOrder order;
    order.mutable_resume()->set_capsule(id_.value);
    order.mutable_resume()->set_epoch(epoch_);
    order.mutable_resume()->set_token(bytes);
    order.mutable_resume()->set_listen_address("127.0.0.1");
    Result<std::unique_ptr<daemon::Worker>> pager = daemon::Worker::start(there(), order);
    ASSERT_OK(pager);
    Result<wire::WorkerEvent> event = (*pager)->next_event(60'000);
    ASSERT_OK(event);
    ASSERT_TRUE(event->has_listening()) << event->ShortDebugString();
    order.Clear();
    order.mutable_serve()->set_capsule(id_.value);
    order.mutable_serve()->set_epoch(epoch_);
    order.mutable_serve()->set_token(bytes);
    order.mutable_serve()->set_target_address("127.0.0.1");
    order.mutable_serve()->set_target_port(event->listening().port());
    Result<std::unique_ptr<daemon::Worker>> server = daemon::Worker::start(here(), order);
    ASSERT_OK(server);
    Result<wire::Report> served = (*server)->finish({}, 60'000);
    ASSERT_OK(served);
    Result<wire::Report> drained = (*pager)->finish({}, 60'000);
    ASSERT_OK(drained);
    (*server)->wait_end();
    (*pager)->wait_end();
    EXPECT_EQ(served->outcome(), wire::Report::MOVED) << served->reason();
    EXPECT_EQ(drained->outcome(), wire::Report::MOVED) << drained->reason();
  }

  // It runs at `at_`, its memory and clocks are right, and the other node has nothing of it.
  void prove_unharmed() {
    ASSERT_NO_FATAL_FAILURE(follow());
    ASSERT_NO_FATAL_FAILURE(send_line("check"));
    std::string json = read_line();
    ASSERT_EQ(json.substr(0, 1), "{") << json;
    ASSERT_EQ(read_line(), "ok");
    ASSERT_EQ(read_line(), "exited 0");
    EXPECT_FALSE(std::filesystem::exists(there().capsule_run_dir(id_)));
    EXPECT_FALSE(sys::CgroupGroup::open(capsule::Shell::cgroup_name(there(), id_)).ok());
    ASSERT_OK(capsule::Shell::destroy(here(), id_));
  }

  int drains_resumed_ = 0;
  std::string reason_;
};

class Faults : public FaultyNodes, public ::testing::WithParamInterface<Fault> {};

// Pages are still on the source when a worker dies: another pair goes on, again and again.
TEST_F(FaultyNodes, ADrainWhoseWorkersDieIsGoneOnWith) {
  for (int i = 0; i < 6; ++i) {
    const bool kill_source = i % 3 != 1, kill_target = i % 3 != 0;
    SCOPED_TRACE(fmt::format("time {}, source {}, target {}", i, kill_source, kill_target));
    ASSERT_NO_FATAL_FAILURE(new_program("128"));
    const int before = at_;
    Pair pair;
    ASSERT_OK(start_migration(i % 2 == 0 ? wire::POSTCOPY : wire::HYBRID, pair));
    const std::int64_t until_us = monotonic_us() + 60'000'000;
    for (bool draining = false; !draining;) {
      ASSERT_LT(monotonic_us(), until_us) << "it never drained";
      Result<CommitRecord> record = CommitRecord::open(migrate::grant_path(there(), id_), true);
      ASSERT_OK(record);
      Result<migrate::RecordContent> content = record->read();
      ASSERT_OK(content);
      const auto state = static_cast<TargetState>(content->state);
      ASSERT_NE(state, TargetState::refused);
      draining = state != TargetState::offered;
    }
    // Where in the drain it dies, from its beginning.
    (void)pair.target->next_event(i * 4);
    if (kill_target) pair.target->kill();
    if (kill_source) pair.source->kill();
    ASSERT_NO_FATAL_FAILURE(settle(pair.source.get(), pair.target.get()));
    EXPECT_NE(at_, before);
    ASSERT_NO_FATAL_FAILURE(prove_unharmed());
  }
  EXPECT_GT(drains_resumed_, 2);
  std::printf("%d drains resumed\n", drains_resumed_);
}

TEST_P(Faults, LeaveExactlyOneCopyUnharmed) {
  const Fault& fault = GetParam();
  std::int64_t calls = 0;
  bool struck = false;
  ASSERT_NO_FATAL_FAILURE(new_program());
  ASSERT_NO_FATAL_FAILURE(attempt(fault, {}, calls, struck));
  ASSERT_NO_FATAL_FAILURE(prove_unharmed());
  ASSERT_GT(calls, 100);
  const char* wanted = std::getenv("GODWIT_EXHAUSTIVE");
  const bool all = wanted != nullptr && *wanted == '1';
  const std::int64_t stride = all ? 1 : calls / points_in_ci;
  int points = 0, moved = 0;
  struck = true;
  for (std::int64_t n = all ? 1 : stride / 2; struck && (all || n <= calls); n += stride) {
    const int error = fault.fail_with == 0 ? 0 : (n % 2 == 0 ? EIO : ENOMEM);
    SCOPED_TRACE(fmt::format("call {} of about {}, errno {}", n, calls, error));
    ASSERT_NO_FATAL_FAILURE(new_program());
    const int before = at_;
    std::int64_t counted = 0;
    ASSERT_NO_FATAL_FAILURE(attempt(fault, {.at = n, .fail_with = error}, counted, struck));
    ASSERT_NO_FATAL_FAILURE(prove_unharmed()) << reason_;
    points += struck;
    moved += at_ != before;
  }
  std::printf("%d points, %d of them moved, %d drains resumed\n", points, moved, drains_resumed_);
}

std::vector<Fault> all_faults() {
  std::vector<Fault> out;
  for (wire::Mode mode : {wire::STOP, wire::PRECOPY, wire::POSTCOPY, wire::HYBRID})
    for (Side side : {Side::source, Side::target})
      for (int fail_with : {0, EIO}) out.push_back({mode, side, fail_with});
  return out;
}

INSTANTIATE_TEST_SUITE_P(AtAnyCall, Faults, ::testing::ValuesIn(all_faults()),
                         [](const auto& info) {
                           return fmt::format(
                               "{}_{}_{}", wire::Mode_Name(info.param.mode),
                               info.param.side == Side::source ? "source" : "target",
                               info.param.fail_with == 0 ? "killed" : "failed");
                         });

}  // namespace
}  // namespace godwit
