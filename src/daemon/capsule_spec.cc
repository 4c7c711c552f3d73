#include "daemon/capsule_spec.h"

#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cstdio>

#include "base/clock.h"
#include "sys/cpuid.h"

namespace godwit::daemon {
namespace {

// 02: locally administered; the rest follows from the address, which is unique in the cluster.
std::string mac_for(const std::string& ip) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (std::sscanf(ip.c_str(), "%u.%u.%u.%u", &a, &b, &c, &d) != 4) return "";
  return fmt::format("02:67:{:02x}:{:02x}:{:02x}:{:02x}", a, b, c, d);
}

bool is_directory(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// The C library chooses its code by the processor unless it is told otherwise. Who asks CPUID
// itself sees everything: so this is advice, and a program that doesn't heed it was promised too
// little.
void apply_baseline(const std::vector<std::string>& hidden, image::CapsuleSpec& spec) {
  if (hidden.empty()) return;
  auto offered = sys::without_features(spec.cpu_features(), hidden);
  INVARIANT(offered.ok(), "{}", offered.error().what());  // The configuration was checked.
  spec.set_cpu_features(*offered);
  std::string tunable;
  for (std::string name : hidden) {
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return toupper(c); });
    tunable += (tunable.empty() ? "glibc.cpu.hwcaps=-" : ",-") + name;
  }
  constexpr std::string_view variable = "GLIBC_TUNABLES=";
  for (auto& entry : *spec.mutable_env()) {
    if (!entry.starts_with(variable)) continue;
    if (entry.find("glibc.cpu.hwcaps") == std::string::npos) entry += ":" + tunable;
    return;
  }
  spec.add_env(std::string(variable) + tunable);
}

}  // namespace

image::CapsuleSpec make_spec(const Config& config, const api::RunRequest& request,
                             const Account& account, const std::string& id, const std::string& name,
                             const std::string& ip, std::uint32_t prefix_len) {
  image::CapsuleSpec spec;
  spec.set_id(id);
  spec.set_name(name);
  spec.set_hostname(name);
  spec.set_uid(account.uid);
  spec.set_gid(account.gid);
  for (const auto group : account.groups) spec.add_groups(group);
  spec.set_user(account.name);
  *spec.mutable_argv() = request.argv();
  *spec.mutable_env() = request.env();
  spec.set_cwd(request.cwd());
  if (spec.cwd().empty()) {
    spec.set_cwd(is_directory(request.cwd_wish()) ? request.cwd_wish()
                 : is_directory(account.home)     ? account.home
                                                  : "/");
  }
  spec.set_ip(ip);
  spec.set_prefix_len(prefix_len);
  if (!ip.empty()) spec.set_mac(mac_for(ip));
  spec.set_cpus(request.cpus());
  spec.set_tty(request.tty());
  spec.set_created_realtime_ns(realtime_ns());
  spec.set_cpu_features(sys::cpu_features());
  spec.set_cpu_baseline(request.cpu_baseline());
  if (request.cpu_baseline()) apply_baseline(config.hidden_cpu_features, spec);
  return spec;
}

capsule::SpawnRequest make_spawn(const image::CapsuleSpec& spec, const api::RunRequest& request) {
  capsule::SpawnRequest spawn;
  spawn.argv.assign(spec.argv().begin(), spec.argv().end());
  spawn.env.assign(spec.env().begin(), spec.env().end());
  spawn.cwd = spec.cwd();
  spawn.uid = spec.uid();
  spawn.gid = spec.gid();
  spawn.groups.assign(spec.groups().begin(), spec.groups().end());
  spawn.tty = spec.tty();
  if (request.window().rows() > 0 && request.window().columns() > 0) {
    spawn.rows = static_cast<std::uint16_t>(request.window().rows());
    spawn.columns = static_cast<std::uint16_t>(request.window().columns());
  }
  return spawn;
}

}  // namespace godwit::daemon
