#include "cli/json.h"

#include <sys/wait.h>

namespace godwit::cli {
namespace {

template <typename Repeated>
Json strings(const Repeated& values) {
  Json list = Json::array();
  for (const auto& value : values) list.push_back(value);
  return list;
}

std::string command_line(const api::CapsuleInfo& capsule) {
  std::string line;
  for (const auto& argument : capsule.argv()) line += (line.empty() ? "" : " ") + argument;
  return line;
}

void add_status(Json& out, int wait_status) {
  if (WIFSIGNALED(wait_status))
    out["signal"] = WTERMSIG(wait_status);
  else
    out["exit_code"] = WEXITSTATUS(wait_status);
}

}  // namespace

Json to_json(const api::CapsuleInfo& capsule) {
  Json out;
  out["name"] = capsule.name();
  out["id"] = capsule.id();
  out["node"] = capsule.node();
  out["state"] = capsule.state();
  out["user"] = capsule.user();
  out["uid"] = capsule.uid();
  out["command"] = command_line(capsule);
  out["argv"] = strings(capsule.argv());
  out["ip"] = capsule.ip();
  out["pid"] = capsule.pid();
  out["memory_bytes"] = capsule.memory_bytes();
  out["cpu"] = capsule.cpu();
  out["cpus"] = capsule.cpus();
  out["tty"] = capsule.tty();
  out["age_s"] = static_cast<double>(capsule.age_us()) / 1e6;
  out["migrations"] = capsule.migrations();
  out["residual"] = strings(capsule.residual());
  if (capsule.state() == "exited") add_status(out, capsule.wait_status());
  if (!capsule.note().empty()) out["note"] = capsule.note();
  return out;
}

Json to_json(const api::NodeInfo& node) {
  Json out;
  out["name"] = node.name();
  out["address"] = node.address();
  out["alive"] = node.alive();
  out["version"] = node.version();
  out["cores"] = node.cores();
  out["speed"] = node.speed();
  out["load"] = node.load();
  out["memory_used_bytes"] = node.memory_used_bytes();
  out["memory_limit_bytes"] = node.memory_limit_bytes();
  out["capsules"] = node.capsules();
  out["accepts"] = node.accepts();
  out["kernel"] = node.kernel();
  out["boot"] = node.boot();
  if (!node.note().empty()) out["note"] = node.note();
  return out;
}

Json to_json(const api::MigrationResult& migration) {
  Json out;
  out["id"] = migration.id();
  out["capsule"] = migration.capsule();
  out["capsule_id"] = migration.capsule_id();
  out["source"] = migration.source();
  out["target"] = migration.target();
  out["mode"] = migration.mode();
  out["mode_asked"] = migration.mode_asked();
  out["outcome"] = migration.outcome();
  out["reason"] = migration.reason();
  out["reasons"] = strings(migration.reasons());
  out["choice"] = migration.choice();
  out["downtime_us"] = migration.downtime_us();
  out["total_us"] = migration.total_us();
  out["bytes_sent"] = migration.bytes_sent();
  out["pages_sent"] = migration.pages_sent();
  out["pages_zero"] = migration.pages_zero();
  out["rounds"] = Json::array();
  for (const auto& round : migration.rounds()) {
    out["rounds"].push_back(
        {{"pages", round.pages()}, {"bytes", round.bytes()}, {"us", round.us()}});
  }
  out["phases"] = Json::array();
  for (const auto& phase : migration.phases()) {
    out["phases"].push_back(
        {{"name", phase.name()}, {"begin_us", phase.begin_us()}, {"us", phase.us()}});
  }
  out["residual"] = strings(migration.residual());
  out["faults"] = migration.faults();
  out["fault_p50_us"] = migration.fault_p50_us();
  out["fault_p99_us"] = migration.fault_p99_us();
  out["drain_us"] = migration.drain_us();
  out["dirty_bytes_per_s"] = migration.dirty_bytes_per_s();
  out["link_bytes_per_s"] = migration.link_bytes_per_s();
  out["started_realtime_us"] = migration.started_realtime_us();
  out["epoch"] = migration.epoch();
  return out;
}

Json to_json(const api::MigrateProgress& progress) {
  Json out;
  out["phase"] = progress.phase();
  out["bytes_sent"] = progress.bytes_sent();
  out["bytes_remaining"] = progress.bytes_remaining();
  out["bytes_per_s"] = progress.bytes_per_s();
  out["dirty_bytes_per_s"] = progress.dirty_bytes_per_s();
  out["elapsed_us"] = progress.elapsed_us();
  return out;
}

Json to_json(const api::CanMigrateReply& reply) {
  Json out;
  out["capsule"] = reply.capsule();
  out["source"] = reply.source();
  out["target"] = reply.target();
  out["can"] = reply.reasons().empty();
  out["reasons"] = strings(reply.reasons());
  return out;
}

Json to_json(const api::DoctorReply& reply) {
  Json out;
  out["node"] = reply.node();
  out["kernel"] = reply.kernel();
  out["probes"] = Json::array();
  for (const auto& probe : reply.probes()) {
    out["probes"].push_back({{"name", probe.name()},
                             {"status", probe.status()},
                             {"found", probe.found()},
                             {"instead", probe.instead()}});
  }
  return out;
}

Json to_json(const Error& error) {
  return Json{{"error", errc_name(error.code())}, {"message", error.what()}};
}

Json wait_to_json(bool exited, int wait_status, const std::string& note) {
  Json out;
  out["exited"] = exited;
  if (exited) add_status(out, wait_status);
  if (!note.empty()) out["note"] = note;
  return out;
}

}  // namespace godwit::cli
