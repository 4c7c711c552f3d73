// Walks every state that the commit can reach when workers and daemons die, nodes reboot and
// messages are lost or late, at any step, using the production rules of commit.h. What is modelled:
// one migration, a worker on each node, daemons that recover after their workers, two links'
// worth of messages. Disk and /run behave as commit.h says: /run is lost by a reboot, disk is not.
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "base/result.h"
#include "migrate/commit.h"

namespace godwit::migrate {
namespace {

enum class Copy : std::uint8_t { none, frozen, running };
enum class Worker : std::uint8_t { ready, decided, waiting, done, dead };
enum class Flight : std::uint8_t { none, running, refused, lost, draining };

Flight flight_of(Answer answer) {
  switch (answer) {
    case Answer::running:
      return Flight::running;
    case Answer::refused:
      return Flight::refused;
    case Answer::lost:
      return Flight::lost;
    case Answer::draining:
      return Flight::draining;
  }
  return Flight::none;
}

Answer answer_of(Flight flight) {
  switch (flight) {
    case Flight::running:
      return Answer::running;
    case Flight::refused:
      return Answer::refused;
    case Flight::draining:
      return Answer::draining;
    default:
      return Answer::lost;
  }
}

struct State {
  // Source node.
  bool journal_exists = true;
  SourceState journal = SourceState::attempting;
  Copy source_copy = Copy::frozen;
  Worker source_worker = Worker::ready;
  bool source_rebooted = false;
  // Target node.
  TargetState record = TargetState::offered;
  Copy target_copy = Copy::frozen;
  Worker target_worker = Worker::ready;
  bool target_rebooted = false;
  bool ran_on_target = false;
  bool postcopy = false;
  bool pages_missing = false;  // The target's copy needs the source's frozen one.
  // In flight.
  bool grant = false;
  bool running_reply = false;
  Flight answer = Flight::none;

  auto key() const {
    return std::tuple(journal_exists, journal, source_copy, source_worker, source_rebooted, record,
                      target_copy, target_worker, target_rebooted, ran_on_target, postcopy,
                      pages_missing, grant, running_reply, answer);
  }
  bool operator<(const State& other) const { return key() < other.key(); }
};

struct Step {
  std::string name;
  State next;
  bool fault;
};

void source_acts(State& s, SourceAction action) {
  switch (action) {
    case SourceAction::thaw:
      s.journal = SourceState::kept;
      s.source_copy = Copy::running;
      break;
    case SourceAction::destroy:
      s.source_copy = Copy::none;
      s.journal = SourceState::released;
      break;
    case SourceAction::serve:
      // A page server reads until the target has everything and says so on record.
      s.pages_missing = false;
      s.record = TargetState::granted;
      break;
    case SourceAction::lost:
    case SourceAction::ask:
      break;
  }
}

void worker_steps(const State& s, std::vector<Step>& out) {
  if (s.source_worker == Worker::ready) {
    State n = s;
    n.journal = SourceState::given_up;
    n.source_worker = Worker::decided;
    out.push_back({"source records given_up", n, false});
    n = s;  // Any error before the commit: rolled back.
    source_acts(n, decide(s.journal));
    n.source_worker = Worker::done;
    out.push_back({"source rolls back", n, true});
  }
  if (s.source_worker == Worker::decided) {
    State n = s;
    n.grant = true;
    n.source_worker = Worker::waiting;
    out.push_back({"source sends grant", n, false});
  }
  if (s.source_worker == Worker::waiting && s.running_reply) {
    State n = s;
    n.running_reply = false;
    if (n.pages_missing) source_acts(n, SourceAction::serve);
    source_acts(n, SourceAction::destroy);
    n.source_worker = Worker::done;
    out.push_back({"source serves pages and releases", n, false});
  }
  if (s.source_worker == Worker::waiting) {
    State n = s;  // The link broke: the worker ends, in doubt, and leaves it to the daemon.
    n.source_worker = Worker::dead;
    out.push_back({"source worker gives the doubt to its daemon", n, true});
  }
  if (s.target_worker == Worker::ready && s.grant) {
    State n = s;
    n.grant = false;
    if (s.record == TargetState::offered) {
      n.record = s.postcopy ? TargetState::draining : TargetState::granted;
      n.pages_missing = s.postcopy;
      n.target_worker = Worker::decided;
    } else {
      n.target_copy = Copy::none;
      n.target_worker = Worker::done;
    }
    out.push_back({"target records the grant", n, false});
  }
  if (s.target_worker == Worker::ready) {
    State n = s;  // Its own timeout, its link broke, preflight failed there: refuse, then destroy.
    if (s.record == TargetState::offered) n.record = TargetState::refused;
    n.target_copy = Copy::none;
    n.target_worker = Worker::done;
    out.push_back({"target refuses by itself", n, true});
  }
  if (s.target_worker == Worker::decided) {
    State n = s;
    n.target_copy = Copy::running;
    n.ran_on_target = true;
    n.running_reply = true;
    n.target_worker = Worker::done;
    out.push_back({"target starts", n, false});
  }
}

void daemon_steps(const State& s, std::vector<Step>& out) {
  bool worker_gone = s.source_worker == Worker::dead;
  if (worker_gone && s.journal_exists && s.source_copy == Copy::frozen) {
    SourceAction action = decide(s.journal);
    if (action != SourceAction::ask) {
      State n = s;
      source_acts(n, action);
      out.push_back({"source daemon recovers", n, false});
    } else if (s.answer == Flight::none) {
      // The query reaches the target's daemon, which records before it answers.
      State n = s;
      QueryStep q = on_query(s.record, s.target_rebooted);
      if (q.refuse_first) {
        n.record = TargetState::refused;
        q = on_query(n.record, s.target_rebooted);
      }
      n.answer = flight_of(q.answer);
      out.push_back({"target daemon answers a query", n, false});
    } else {
      State n = s;
      n.answer = Flight::none;
      Answer a = answer_of(s.answer);
      source_acts(n, decide(s.journal, a));
      if (a != Answer::lost) out.push_back({"source daemon acts on the answer", n, false});
    }
  }
  if (s.target_worker == Worker::dead && s.target_copy == Copy::frozen) {
    State n = s;
    switch (decide(s.record, s.target_rebooted)) {
      case TargetAction::run:
      case TargetAction::run_and_drain:
        n.target_copy = Copy::running;
        n.ran_on_target = true;
        break;
      case TargetAction::refuse_and_destroy:
        n.record = TargetState::refused;
        [[fallthrough]];
      case TargetAction::destroy:
        n.target_copy = Copy::none;
        break;
    }
    out.push_back({"target daemon recovers", n, false});
  }
}

void fault_steps(const State& s, std::vector<Step>& out) {
  auto fault = [&](std::string name, auto change) {
    State n = s;
    change(n);
    out.push_back({std::move(name), n, true});
  };
  if (s.source_worker != Worker::dead && s.source_worker != Worker::done)
    fault("source worker killed", [](State& n) { n.source_worker = Worker::dead; });
  if (s.target_worker != Worker::dead && s.target_worker != Worker::done)
    fault("target worker killed", [](State& n) { n.target_worker = Worker::dead; });
  if (s.grant) fault("grant lost", [](State& n) { n.grant = false; });
  if (s.running_reply) fault("reply lost", [](State& n) { n.running_reply = false; });
  if (s.answer != Flight::none) fault("answer lost", [](State& n) { n.answer = Flight::none; });
  if (!s.source_rebooted)
    fault("source reboots", [](State& n) {
      n.source_rebooted = true;
      n.journal_exists = false;
      n.source_copy = Copy::none;
      n.source_worker = Worker::dead;
      n.answer = Flight::none;
    });
  if (!s.target_rebooted)
    fault("target reboots", [](State& n) {
      n.target_rebooted = true;
      n.target_copy = Copy::none;
      n.target_worker = Worker::dead;
    });
}

std::vector<Step> steps(const State& s, bool faults) {
  std::vector<Step> all, out;
  worker_steps(s, all);
  daemon_steps(s, all);
  if (faults) fault_steps(s, all);
  for (Step& step : all)
    if (faults || !step.fault) out.push_back(std::move(step));
  // Without faults a worker that waits for a message which no longer exists gives up after its
  // timeout, as the real one does.
  if (!faults && out.empty() && s.source_worker == Worker::waiting) {
    State n = s;
    n.source_worker = Worker::dead;
    out.push_back({"source worker's wait ends", n, false});
  }
  if (!faults && out.empty() && s.target_worker == Worker::ready) {
    State n = s;
    n.target_worker = Worker::dead;
    out.push_back({"target worker's wait ends", n, false});
  }
  return out;
}

int copies(const State& s) {
  return (s.source_copy == Copy::running) + (s.target_copy == Copy::running);
}

std::map<State, std::pair<State, std::string>> reachable() {
  std::map<State, std::pair<State, std::string>> seen;
  std::deque<State> queue;
  for (bool postcopy : {false, true}) {
    State start;
    start.postcopy = postcopy;
    queue.push_back(start);
    seen.emplace(start, std::pair(start, "start"));
  }
  while (!queue.empty()) {
    State s = queue.front();
    queue.pop_front();
    for (const Step& step : steps(s, true))
      if (seen.emplace(step.next, std::pair(s, step.name)).second) queue.push_back(step.next);
  }
  return seen;
}

std::string path_to(const std::map<State, std::pair<State, std::string>>& seen, State s) {
  std::string out;
  while (true) {
    const auto& [before, name] = seen.at(s);
    out = name + "\n" + out;
    if (name == "start") return out;
    s = before;
  }
}

TEST(CommitModel, AtMostOneCopyEverRuns) {
  auto seen = reachable();
  EXPECT_GT(seen.size(), 150u);  // The walk did go somewhere.
  for (const auto& [s, from] : seen) {
    EXPECT_LE(copies(s), 1) << path_to(seen, s);
    // What ran on the target must never be followed by the older copy on the source.
    EXPECT_FALSE(s.ran_on_target && s.source_copy == Copy::running) << path_to(seen, s);
    // Pages that the target lacks are never thrown away, short of a reboot.
    EXPECT_FALSE(s.pages_missing && s.source_copy == Copy::none && !s.source_rebooted)
        << path_to(seen, s);
  }
}

TEST(CommitModel, ExactlyOneCopyOnceTheNodesCanTalk) {
  auto seen = reachable();
  for (const auto& [start, from] : seen) {
    // From any state, without further faults, every order of steps must settle well.
    std::map<State, bool> visited;
    std::deque<State> queue{start};
    visited[start] = true;
    while (!queue.empty()) {
      State s = queue.front();
      queue.pop_front();
      std::vector<Step> next = steps(s, false);
      for (const Step& step : next)
        if (visited.emplace(step.next, true).second) queue.push_back(step.next);
      if (!next.empty()) continue;
      // A reboot takes along the copy that the node held; nothing can bring that back.
      bool lost_with_node = (s.target_rebooted && s.ran_on_target) ||
                            (s.target_rebooted && (s.record == TargetState::granted ||
                                                   s.record == TargetState::draining)) ||
                            (s.source_rebooted && !s.ran_on_target);
      if (!lost_with_node) {
        EXPECT_EQ(copies(s), 1) << path_to(seen, start);
        // What is still missing is missing because the source rebooted.
        EXPECT_TRUE(!s.pages_missing || s.source_rebooted) << path_to(seen, start);
      }
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace godwit::migrate
