#include "cli/local_commands.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "cli/exit_codes.h"
#include "cli/json.h"
#include "cli/text.h"
#include "local/local_cluster.h"

namespace godwit::cli {
namespace {

int fail(const LocalOptions& options, const Error& failure) {
  // Whatever an ordinary user ran into, this is why.
  const bool not_root = geteuid() != 0 && failure.code() != Errc::invalid;
  const Error error =
      not_root ? Error(Errc::permission, "only root sees and changes local clusters") : failure;
  if (options.json) fmt::print("{}\n", to_json(error).dump(2));
  fmt::print(stderr, "godwit: {}\n", error.what());
  if (error.code() == Errc::invalid) return static_cast<int>(Exit::usage);
  return static_cast<int>(exit_for(error));
}

std::string name_of(const LocalOptions& options) {
  if (!options.name.empty()) return options.name;
  const char* name = std::getenv("GODWIT_CLUSTER");
  return name == nullptr || *name == '\0' ? "default" : name;
}

int report(const LocalOptions& options, const Result<void>& done) {
  return done.ok() ? 0 : fail(options, done.error());
}

void print(const local::ClusterStatus& status) {
  fmt::print("cluster {}{}, network {}, shared directory {}{}\n", status.name,
             status.complete ? "" : coloured(Colour::red, " (incomplete)"), status.network,
             status.shared_dir,
             status.bandwidth_bits_per_s == 0
                 ? ""
                 : fmt::format(", {} Mbit/s a link", status.bandwidth_bits_per_s / 1'000'000));
  Table table({"NODE", "STATE", "LINK", "ADDRESS", "CORES", "SPEED", "MEMORY", "DAEMON", "SOCKET"});
  for (const auto& node : status.nodes) {
    const bool well = node.running && node.daemon_answers;
    const std::string state = !node.running         ? "off"
                              : node.daemon_answers ? "up"
                              : node.daemon_running ? "daemon starts"
                                                    : "no daemon";
    table.add({node.node.value, coloured(well ? Colour::green : Colour::red, state),
               node.link_up ? "up" : coloured(Colour::red, "cut"), node.address,
               node.cores == 0 ? "-" : fmt::format("{}", node.cores),
               fmt::format("{:g}", node.speed),
               node.memory_bytes == 0 ? "-" : human_bytes(node.memory_bytes),
               node.daemon_pid == 0 ? "-" : fmt::format("{}", node.daemon_pid), node.socket});
  }
  fmt::print("{}", table.text());
}

}  // namespace

int local_up_command(const LocalOptions& options) {
  local::UpOptions up;
  up.name = name_of(options);
  up.nodes = options.nodes;
  up.cores = options.cores;
  up.shared_dir = options.shared;
  std::istringstream speeds(options.speeds);
  for (std::string speed; std::getline(speeds, speed, ',');) {
    char* end = nullptr;
    up.speeds.push_back(std::strtod(speed.c_str(), &end));
    if (end == speed.c_str() || *end != '\0' || up.speeds.back() <= 0) {
      return fail(options, make_error(Errc::invalid, "--speed {}: not a number above 0", speed));
    }
  }
  if (!options.memory.empty()) {
    auto bytes = local::parse_bytes(options.memory);
    if (!bytes.ok()) return fail(options, bytes.error());
    up.memory_bytes = *bytes;
  }
  if (!options.bandwidth.empty()) {
    auto bits = local::parse_bits_per_s(options.bandwidth);
    if (!bits.ok()) return fail(options, bits.error());
    up.bandwidth_bits_per_s = *bits;
  }
  if (!options.json) {
    up.progress = [](const std::string& line) { fmt::print(stderr, "{}\n", line); };
  }
  auto status = local::local_up(up);
  if (!status.ok()) return fail(options, status.error());
  if (options.json)
    fmt::print("{}\n", local::to_json(*status));
  else
    print(*status);
  return 0;
}

int local_status_command(const LocalOptions& options) {
  auto status = local::local_status(name_of(options));
  if (!status.ok()) return fail(options, status.error());
  if (options.json)
    fmt::print("{}\n", local::to_json(*status));
  else
    print(*status);
  return 0;
}

int local_down_command(const LocalOptions& options) {
  return report(options, local::local_down(name_of(options)));
}

int local_node_command(const LocalOptions& options) {
  const std::string name = name_of(options);
  const NodeId node{options.node};
  if (options.action == "stop") return report(options, local::node_stop(name, node));
  if (options.action == "start") return report(options, local::node_start(name, node));
  if (options.action == "kill-daemon") return report(options, local::daemon_kill(name, node));
  return report(options, local::daemon_start(name, node));
}

int local_link_command(const LocalOptions& options) {
  return report(options,
                local::link_set(name_of(options), NodeId{options.node}, options.action == "up"));
}

int local_bandwidth_command(const LocalOptions& options) {
  auto bits = local::parse_bits_per_s(options.bandwidth);
  if (!bits.ok()) return fail(options, bits.error());
  return report(options, local::bandwidth_set(name_of(options), *bits));
}

}  // namespace godwit::cli
