// Whatever system call of a worker is its last one, or fails, and whatever the program does at that
// moment: afterwards, by the rules of commit.h alone, exactly one copy runs, unharmed (or has
// ended, as it wanted to), and nothing is left on the other side.
//
// The daemon's part (what it asks, records and orders) is played here, as docs/ENGINE.md tells it.
// Points are spread evenly over each run, as many as fit into a few seconds, beginning at a random
// one: GODWIT_SEED repeats a run, GODWIT_EXHAUSTIVE=1 tries every call.
// First: <signal.h> has a macro named as a field of the image.
#include "two_nodes.h"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "base/clock.h"
#include "base/io.h"

#include "migrate/commit.h"
#include "outer_tracer.h"
#include "sys/proc.h"

namespace godwit {
namespace {

using migrate::Answer;
using migrate::CommitRecord;
using migrate::SourceAction;
using migrate::SourceState;
using migrate::TargetAction;
using migrate::TargetState;

// What the points of one case may take, where not every call is tried.
constexpr std::int64_t budget_us = 4'000'000;
constexpr std::int64_t points_min = 3;

enum class Side { source, target };

// The first two happen to the worker, the others to the program, or to its init.
enum class Kind { killed, failed, exits, execs, forks, kills_itself, is_killed, loses_init };

struct Fault {
  wire::Mode mode;
  Side side;
  Kind kind;

  bool of_worker() const { return kind == Kind::killed || kind == Kind::failed; }
  // By which the program is asked, or is killed.
  int signal() const {
    switch (kind) {
      case Kind::exits:
        return SIGUSR1;
      case Kind::execs:
        return SIGUSR2;
      case Kind::forks:
        return SIGHUP;
      case Kind::kills_itself:
        return SIGTERM;
      default:
        return SIGKILL;
    }
  }
  // What the program's end looks like then; empty: it doesn't end.
  std::string end() const {
    if (kind == Kind::exits) return "exited 7";
    if (kind == Kind::kills_itself || kind == Kind::is_killed) return "killed by 9";
    return "";
  }
};

class FaultyNodes : public TwoNodes {
 protected:
  NodeEnv& here() { return nodes_[at_].env; }
  NodeEnv& there() { return nodes_[1 - at_].env; }

  void new_program(const std::string& mib = "4") {
    client_.reset();
    output_.clear();
    out_next_ = stdin_next_ = epoch_ = 0;
    numbers_ = shared_dir_ + "/numbers";
    std::filesystem::remove(numbers_);
    ASSERT_NO_FATAL_FAILURE(start_program({WITNESS, numbers_, mib}));
    ASSERT_EQ(read_line(), "ready");
  }

  // The copy that counts: the target's as soon as it was granted.
  const NodeEnv& live() {
    Result<CommitRecord> record = CommitRecord::open(migrate::grant_path(there(), id_), true);
    Result<migrate::RecordContent> content =
        record.ok() ? record->read() : Result<migrate::RecordContent>(record.error());
    if (!content.ok() || content->epoch.value != epoch_) return here();
    const auto state = static_cast<TargetState>(content->state);
    return state == TargetState::granted || state == TargetState::draining ? there() : here();
  }

  // In the process of the outer tracer.
  void act(const Fault& fault) {
    Result<capsule::Shell> shell = capsule::Shell::open(
        fault.kind == Kind::loses_init && fault.side == Side::target ? there() : live(), id_);
    if (!shell.ok()) return;  // The target has none yet.
    if (fault.kind == Kind::loses_init) {
      ::kill(shell->init_pid(), SIGKILL);
      return;
    }
    Result<std::vector<pid_t>> pids = shell->tree().pids();
    if (pids.ok() && !pids->empty()) ::kill(pids->front(), fault.signal());
  }

  // One migration with this fault, brought to its end.
  void attempt(const Fault& fault, std::int64_t at, std::int64_t& count, bool& struck) {
    OuterTracer::Plan plan{.at = at, .strike = OuterTracer::Strike::act, .act = {}};
    if (fault.kind == Kind::killed) plan.strike = OuterTracer::Strike::kill;
    if (fault.kind == Kind::failed) plan.strike = OuterTracer::Strike::fail;
    plan.act = [&] { act(fault); };
    may_lose_init_ = fault.kind == Kind::loses_init;
    may_lose_pages_ = fault.kind == Kind::is_killed || fault.kind == Kind::loses_init;
    lost_ = false;
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
    reason_ = fmt::format("{}; {}", tracer->what(), reason_);
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
      Result<CommitRecord> journal = CommitRecord::open(migrate::journal_path(here(), id_), false);
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
          if (outcome != wire::Report::STAYED && current) {
            Result<void> thawed = order(here(), wire::RecoverOrder::THAW);
            if (!may_lose_init_) ASSERT_OK(thawed);
          }
          return;
        case SourceAction::destroy:
          ASSERT_NO_FATAL_FAILURE(end_target(target, false));
          // end_target has changed sides.
          ASSERT_OK(order(there(), wire::RecoverOrder::DESTROY));
          return;
        case SourceAction::serve:
          ASSERT_NO_FATAL_FAILURE(end_target(target, false));
          at_ = 1 - at_;
          // There a daemon sees the end of its capsule, and answers so.
          if (may_lose_init_ && init_is_dying(there())) {
            ASSERT_OK(order(here(), wire::RecoverOrder::DESTROY));
            at_ = 1 - at_;
            lost_ = true;
            return;
          }
          ASSERT_NO_FATAL_FAILURE(resume_drain());
          ++drains_resumed_;
          if (lost_) return;
          break;
        default:
          FAIL() << "action " << static_cast<int>(action);
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
      migrate::QueryStep step = migrate::on_query(static_cast<TargetState>(content->state), false);
      answer = step.answer;
      if (!step.refuse_first) return;
      ASSERT_OK(record->change(Epoch{epoch_}, content->state,
                               static_cast<std::uint32_t>(TargetState::refused)));
    }
  }

  // The target's worker ends, or is ended; what it left is brought to its conclusion.
  void end_target(daemon::Worker* target, bool released) {
    bool moved = false;
    if (target != nullptr) {
      Result<CommitRecord> record = CommitRecord::open(migrate::grant_path(there(), id_), true);
      if (released && record.ok())
        ASSERT_OK(record->change(Epoch{epoch_}, static_cast<std::uint32_t>(TargetState::offered),
                                 static_cast<std::uint32_t>(TargetState::refused)));
      if (released) target->kill();
      Result<wire::Report> report = target->finish({}, 60'000);
      moved = report.ok() && report->outcome() == wire::Report::MOVED;
      if (!report.ok()) target->kill();
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
        if (target != nullptr && !moved) {
          Result<void> started = order(there(), wire::RecoverOrder::START);
          if (!may_lose_init_) ASSERT_OK(started);
        }
        at_ = 1 - at_;
        return;
      default:
        ASSERT_OK(capsule::Shell::destroy(there(), id_));
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
    // Only who killed the copy on the source may lose the capsule, and then both know it.
    lost_ = may_lose_pages_ && served->outcome() == wire::Report::LOST;
    const auto expected = lost_ ? wire::Report::LOST : wire::Report::MOVED;
    EXPECT_EQ(served->outcome(), expected) << served->reason();
    EXPECT_EQ(drained->outcome(), expected) << drained->reason();
  }

  // It runs at `at_`, or has ended there with `end`; all that it can look at is right; no copy but
  // one ever ran; and the other node has nothing of it.
  void prove_unharmed(const std::string& end = "") {
    if (lost_ || (may_lose_init_ && init_is_dying(here()))) return prove_gone();
    ASSERT_NO_FATAL_FAILURE(follow());
    if (Result<void> sent = send("check"); !sent.ok()) {
      ASSERT_NE(end, "") << sent.error().what();
    }
    std::string line = read_line();
    if (line != end || end.empty()) {
      EXPECT_EQ(line.substr(0, 8), "numbers ") << line;
      ASSERT_EQ(read_line(), "ok") << line;
      ASSERT_EQ(read_line(), "exited 0");
    }
    ASSERT_NO_FATAL_FAILURE(prove_no_copies());
    expect_no_shell(there());
    ASSERT_OK(capsule::Shell::destroy(here(), id_));
  }

  // Killed by somebody else's process just now, it may still be about to end.
  bool init_is_dying(const NodeEnv& node) {
    Result<capsule::Shell> shell = capsule::Shell::open(node, id_);
    if (!shell.ok()) return true;
    Result<sys::ProcStatus> status = sys::read_status(shell->init_pid());
    Result<sys::ProcStat> stat = sys::read_stat(shell->init_pid(), shell->init_pid());
    if (!status.ok() || !stat.ok()) return true;
    constexpr unsigned exiting = 4;  // PF_EXITING
    return (status->shared_pending >> (SIGKILL - 1) & 1) != 0 || (stat->flags & exiting) != 0;
  }

  void prove_no_copies() {
    Result<std::string> written = read_file(numbers_);
    ASSERT_OK(written);
    ASSERT_EQ(written->size() % sizeof(std::uint64_t), 0U);
    for (std::uint64_t i = 0; i < written->size() / sizeof i; ++i) {
      std::uint64_t number = 0;
      std::memcpy(&number, written->data() + i * sizeof i, sizeof number);
      ASSERT_EQ(number, i) << "a copy ran twice, or was lost";
    }
  }

  // A capsule's init is the first process of its PID namespace: nothing survives it.
  void prove_gone() {
    ASSERT_NO_FATAL_FAILURE(prove_no_copies());
    expect_no_shell(there());
    ASSERT_OK(capsule::Shell::destroy(here(), id_));
    expect_no_shell(here());
  }

  std::string numbers_;
  bool may_lose_init_ = false, may_lose_pages_ = false;
  bool lost_ = false;
  int drains_resumed_ = 0;
  std::string reason_;
};

class Faults : public FaultyNodes, public ::testing::WithParamInterface<Fault> {};

// Pages are still on the source when a worker dies: another pair goes on, again and again.
TEST_F(FaultyNodes, ADrainWhoseWorkersDieIsGoneOnWith) {
  for (int i = 0; i < 6; ++i) {
    const bool kill_source = i % 3 != 1, kill_target = i % 3 != 0;
    SCOPED_TRACE(fmt::format("time {}, source {}, target {}", i, kill_source, kill_target));
    ASSERT_NO_FATAL_FAILURE(new_program("64"));
    const int before = at_;
    Pair pair;
    ASSERT_OK(start_migration(i % 2 == 0 ? wire::POSTCOPY : wire::HYBRID, pair));
    const std::int64_t until_us = monotonic_us() + 60'000'000;
    for (bool draining = false; !draining;) {
      ASSERT_LT(monotonic_us(), until_us) << "it never drained";
      Result<CommitRecord> record = CommitRecord::open(migrate::grant_path(there(), id_), true);
      // It is made beside the preparation.
      if (!record.ok() && record.error().code() == Errc::not_found) continue;
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

std::uint64_t seed() {
  const char* wanted = std::getenv("GODWIT_SEED");
  return wanted != nullptr ? std::strtoull(wanted, nullptr, 10)
                           : static_cast<std::uint64_t>(realtime_ns() / 1000);
}

TEST_P(Faults, LeaveExactlyOneCopyUnharmed) {
  const Fault& fault = GetParam();
  std::int64_t calls = 0;
  bool struck = false;
  ASSERT_NO_FATAL_FAILURE(new_program());
  const std::int64_t began_us = monotonic_us();
  ASSERT_NO_FATAL_FAILURE(attempt(fault, 0, calls, struck));
  ASSERT_NO_FATAL_FAILURE(prove_unharmed());
  ASSERT_GT(calls, 100);
  const char* wanted = std::getenv("GODWIT_EXHAUSTIVE");
  const bool all = wanted != nullptr && *wanted == '1';
  const std::int64_t fit = budget_us / (monotonic_us() - began_us);
  const std::int64_t stride = all ? 1 : calls / std::clamp(fit, points_min, calls);
  const std::uint64_t first = all ? 0 : seed();
  int points = 0, moved = 0;
  struck = true;
  for (auto n = static_cast<std::int64_t>(1 + first % static_cast<std::uint64_t>(stride));
       struck && (all || n <= calls); n += stride) {
    SCOPED_TRACE(fmt::format("call {} of about {}, GODWIT_SEED={}", n, calls, first));
    ASSERT_NO_FATAL_FAILURE(new_program());
    const int before = at_;
    std::int64_t counted = 0;
    ASSERT_NO_FATAL_FAILURE(attempt(fault, n, counted, struck)) << reason_;
    ASSERT_NO_FATAL_FAILURE(prove_unharmed(struck ? fault.end() : "")) << reason_;
    ASSERT_FALSE(HasFailure()) << reason_;
    points += struck;
    moved += at_ != before;
  }
  std::printf("%d points of %ld, %d of them moved, %d drains resumed\n", points,
              static_cast<long>(calls), moved, drains_resumed_);
}

std::vector<Fault> all_faults() {
  std::vector<Fault> out;
  for (wire::Mode mode : {wire::STOP, wire::PRECOPY, wire::POSTCOPY, wire::HYBRID})
    for (Kind kind : {Kind::killed, Kind::failed, Kind::exits, Kind::execs, Kind::forks,
                      Kind::kills_itself, Kind::is_killed, Kind::loses_init})
      for (Side side : {Side::source, Side::target}) out.push_back({mode, side, kind});
  return out;
}

std::string name_of(const Fault& fault) {
  const char* kinds[] = {"killed",
                         "failed",
                         "program_exits",
                         "program_execs",
                         "program_forks",
                         "program_kills_itself",
                         "program_is_killed",
                         "init_killed"};
  return fmt::format("{}_{}_{}", wire::Mode_Name(fault.mode),
                     fault.side == Side::source ? "source" : "target",
                     kinds[static_cast<int>(fault.kind)]);
}

INSTANTIATE_TEST_SUITE_P(AtAnyCall, Faults, ::testing::ValuesIn(all_faults()),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
}  // namespace godwit
