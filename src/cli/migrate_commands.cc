// migrate, can-migrate, history, doctor: commands that report.
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <optional>
#include <sstream>
#include <string>

#include "base/clock.h"
#include "cli/commands.h"
#include "cli/connect.h"
#include "cli/exit_codes.h"
#include "cli/json.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

constexpr std::int64_t result_wait_us_max = 60'000'000;

// One line that is written over, on a terminal only.
class ProgressLine {
 public:
  explicit ProgressLine(bool wanted) : shown_(wanted && isatty(STDERR_FILENO) != 0) {}
  void show(const api::MigrateProgress& progress) {
    if (!shown_) return;
    std::string line = fmt::format("{:<10} {:>8.1f} MB/s  {} remaining", progress.phase(),
                                   static_cast<double>(progress.bytes_per_s()) / 1e6,
                                   human_bytes(progress.bytes_remaining()));
    if (progress.dirty_bytes_per_s() > 0) {
      line += fmt::format("  {:.1f} MB/s written",
                          static_cast<double>(progress.dirty_bytes_per_s()) / 1e6);
    }
    fmt::print(stderr, "\r\033[K{}", line);
    std::fflush(stderr);
    dirty_ = true;
  }
  void clear() {
    if (dirty_) fmt::print(stderr, "\r\033[K");
    dirty_ = false;
  }

 private:
  bool shown_;
  bool dirty_ = false;
};

class MigrateSink final : public rpc::Sink<api::MigrateEvent> {
 public:
  explicit MigrateSink(bool progress) : line_(progress) {}
  bool write(const api::MigrateEvent& event) override {
    if (event.has_progress()) line_.show(event.progress());
    if (event.has_result()) result = event.result();
    return true;
  }
  void clear() { line_.clear(); }
  std::optional<api::MigrationResult> result;

 private:
  ProgressLine line_;
};

Colour colour_of(const std::string& outcome) {
  if (outcome == "moved") return Colour::green;
  if (outcome == "in-doubt" || outcome == "lost") return Colour::red;
  return Colour::yellow;
}

int exit_of(const api::MigrationResult& result) {
  if (result.outcome() == "moved") return static_cast<int>(Exit::ok);
  if (result.outcome() == "in-doubt") return static_cast<int>(Exit::in_doubt);
  if (result.outcome() == "lost") return static_cast<int>(Exit::lost);
  return static_cast<int>(Exit::failed);
}

void print_result(const api::MigrationResult& m) {
  if (m.outcome() == "moved") {
    fmt::print("{} moved from {} to {}: {}, downtime {}, total {}, {} sent, {} round{}\n",
               m.capsule(), m.source(), m.target(), m.mode(), human_us(m.downtime_us()),
               human_us(m.total_us()), human_bytes(m.bytes_sent()), m.rounds_size(),
               m.rounds_size() == 1 ? "" : "s");
    if (!m.choice().empty()) fmt::print("  {}\n", m.choice());
    return;
  }
  fmt::print(stderr, "godwit: {} to {}: {}: {}\n", m.capsule(), m.target(),
             coloured(colour_of(m.outcome()), m.outcome(), STDERR_FILENO), m.reason());
  for (const auto& reason : m.reasons()) {
    if (reason != m.reason()) fmt::print(stderr, "  {}\n", reason);
  }
}

// The daemon was lost, the migration wasn't: it goes on by itself, and whoever takes it up writes
// down what became of it.
std::optional<api::MigrationResult> result_from_history(rpc::ApiClient& client,
                                                        const std::string& capsule,
                                                        std::int64_t since_realtime_us) {
  const std::int64_t until_us = monotonic_us() + result_wait_us_max;
  while (monotonic_us() < until_us) {
    api::HistoryRequest request;
    request.set_capsule(capsule);
    request.set_limit(1);
    auto history = client.history(rpc::Call(), request);
    if (history.ok() && history->migrations_size() > 0 &&
        history->migrations(0).started_realtime_us() >= since_realtime_us) {
      return history->migrations(0);
    }
    usleep(100'000);
  }
  return std::nullopt;
}

constexpr std::size_t line_columns = 100;

void print_phases(const api::MigrationResult& m) {
  std::string line = "   ";
  for (const auto& phase : m.phases()) {
    const std::string word = fmt::format(" {} {},", phase.name(), human_us(phase.us()));
    if (line.size() + word.size() > line_columns) {
      fmt::print("{}\n", line);
      line = "   ";
    }
    line += word;
  }
  if (m.phases_size() == 0) return;
  line.pop_back();
  fmt::print("{}\n", line);
}

std::string local_time(std::int64_t realtime_us) {
  const std::time_t seconds = realtime_us / 1'000'000;
  std::tm parts{};
  localtime_r(&seconds, &parts);
  char text[32];
  const std::size_t size = std::strftime(text, sizeof text, "%F %T", &parts);
  return std::string(text, size);
}

}  // namespace

int migrate_command(const Options& options) {
  api::MigrateRequest request;
  request.set_capsule(options.capsule);
  request.set_target(options.target);
  request.set_mode(options.mode);
  if (!options.downtime_target.empty()) {
    const std::int64_t us = parse_duration_us(options.downtime_target);
    if (us <= 0)
      return usage("--downtime-target " + options.downtime_target + ": not a time (10ms)");
    request.set_downtime_target_us(us);
  }
  int code = 0;
  auto client = connect(options, code);
  if (!client) return code;
  MigrateSink sink(!options.quiet && !options.json);
  const std::int64_t began_realtime_us = realtime_us();
  auto done = client->migrate(rpc::Call(), request, sink);
  if (!sink.result && !done.ok() && done.error().code() == Errc::peer_lost) {
    sink.result = result_from_history(*client, options.capsule, began_realtime_us);
  }
  sink.clear();
  if (!sink.result) {
    const char* hint = "no result came; what became of it: `godwit ps`, `godwit history`";
    if (done.ok()) return fail(options, make_error(Errc::peer_lost, "{}", hint));
    if (done.error().code() != Errc::peer_lost) return fail(options, done.error());
    return fail(options, std::move(done).error().with(hint));
  }
  if (options.json)
    print_json(to_json(*sink.result));
  else
    print_result(*sink.result);
  return exit_of(*sink.result);
}

int can_migrate_command(const Options& options) {
  api::CanMigrateRequest request;
  request.set_capsule(options.capsule);
  request.set_target(options.target);
  return call(options, request, &rpc::Api::can_migrate, [&](const api::CanMigrateReply& reply) {
    if (options.json) {
      print_json(to_json(reply));
    } else if (reply.reasons().empty()) {
      fmt::print("{} can move from {} to {}\n", reply.capsule(), reply.source(), reply.target());
    } else {
      fmt::print("{} can't move from {}{}{}:\n", reply.capsule(), reply.source(),
                 reply.target().empty() ? "" : " to ", reply.target());
      for (const auto& reason : reply.reasons()) fmt::print("  {}\n", reason);
    }
    return static_cast<int>(reply.reasons().empty() ? Exit::ok : Exit::failed);
  });
}

int history_command(const Options& options) {
  api::HistoryRequest request;
  request.set_capsule(options.capsule);
  request.set_limit(options.limit);
  return call(options, request, &rpc::Api::history, [&](const api::HistoryReply& reply) {
    for (const auto& node : reply.unreachable()) {
      fmt::print(stderr, "godwit: node {} does not answer\n", node);
    }
    if (options.json) {
      Json list = Json::array();
      for (const auto& migration : reply.migrations()) list.push_back(to_json(migration));
      print_json(list);
      return 0;
    }
    Table table({"WHEN", "CAPSULE", "FROM", "TO", "MODE", "OUTCOME", "DOWNTIME", "TOTAL", "SENT",
                 "ROUNDS", "REASON"});
    for (const auto& m : reply.migrations()) {
      table.add({local_time(m.started_realtime_us()), m.capsule(), m.source(), m.target(), m.mode(),
                 coloured(colour_of(m.outcome()), m.outcome()), human_us(m.downtime_us()),
                 human_us(m.total_us()), human_bytes(m.bytes_sent()),
                 fmt::format("{}", m.rounds_size()), m.reason()});
    }
    // Of one capsule in full: under each migration where its time went.
    std::istringstream lines(table.text());
    std::string line;
    for (int i = -1; std::getline(lines, line); ++i) {
      fmt::print("{}\n", line);
      if (i >= 0 && !options.capsule.empty()) print_phases(reply.migrations(i));
    }
    return 0;
  });
}

int doctor_command(const Options& options) {
  api::DoctorRequest request;
  request.set_node(options.doctor_node);
  return call(options, request, &rpc::Api::doctor, [&](const api::DoctorReply& reply) {
    bool missing = false;
    for (const auto& probe : reply.probes()) missing = missing || probe.status() == "missing";
    if (options.json) {
      print_json(to_json(reply));
    } else {
      fmt::print("node {}, kernel {}\n", reply.node(), reply.kernel());
      Table table({"WHAT", "STATUS", "FOUND", "INSTEAD"});
      for (const auto& probe : reply.probes()) {
        const Colour colour = probe.status() == "ok"        ? Colour::green
                              : probe.status() == "missing" ? Colour::red
                                                            : Colour::yellow;
        table.add({probe.name(), coloured(colour, probe.status()), probe.found(), probe.instead()});
      }
      fmt::print("{}", table.text());
    }
    return static_cast<int>(missing ? Exit::failed : Exit::ok);
  });
}

}  // namespace godwit::cli
