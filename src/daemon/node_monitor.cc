#include "daemon/node_monitor.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <sstream>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "sys/cgroup.h"

namespace godwit::daemon {
namespace {

std::uint64_t meminfo_bytes(const std::string& text, const std::string& key) {
  std::istringstream lines(text);
  std::string name;
  std::uint64_t kib = 0;
  std::string unit;
  while (lines >> name >> kib && std::getline(lines, unit)) {
    if (name == key + ":") return kib * 1024;
  }
  return 0;
}

// Of all processors, without idle and iowait.
Result<std::uint64_t> machine_cpu_us() {
  std::istringstream line(TRY(read_file("/proc/stat")));
  std::string cpu;
  std::uint64_t user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0;
  line >> cpu >> user >> nice >> system >> idle >> iowait >> irq >> softirq;
  if (!line || cpu != "cpu") return make_error(Errc::unsupported, "/proc/stat: no cpu line");
  const auto ticks = static_cast<std::uint64_t>(sysconf(_SC_CLK_TCK));
  return (user + nice + system + irq + softirq) * 1'000'000 / ticks;
}

}  // namespace

Result<std::string> boot_incarnation(const NodeEnv& env) {
  const std::string path = env.run_dir + "/boot";
  auto known = read_file(path);
  if (known.ok() && !known->empty()) return known;
  const std::string fresh = random_hex(16);
  TRY(replace_file(path, fresh, false));
  return fresh;
}

NodeMonitor::NodeMonitor(const Config& config, std::string boot)
    : config_(config),
      boot_(std::move(boot)),
      cores_(config.cores > 0 ? config.cores : static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN))),
      memory_limit_bytes_(config.memory_bytes) {
  if (memory_limit_bytes_ == 0) {
    auto meminfo = read_file("/proc/meminfo");
    if (meminfo.ok()) memory_limit_bytes_ = meminfo_bytes(*meminfo, "MemTotal");
  }
  utsname name{};
  if (uname(&name) == 0) kernel_ = name.release;
  sample();
}

Result<std::uint64_t> NodeMonitor::cpu_usage_us() const {
  if (!emulated()) return machine_cpu_us();
  return TRY(sys::CgroupGroup::open(config_.env.cgroup_base)).cpu_usage_us();
}

Result<std::uint64_t> NodeMonitor::memory_used_bytes() const {
  if (emulated()) {
    return TRY(sys::CgroupGroup::open(config_.env.cgroup_base)).memory_usage_bytes();
  }
  const std::string meminfo = TRY(read_file("/proc/meminfo"));
  return meminfo_bytes(meminfo, "MemTotal") - meminfo_bytes(meminfo, "MemAvailable");
}

void NodeMonitor::sample() {
  auto now = cpu_usage_us();
  const std::lock_guard lock(mutex_);
  if (!now.ok()) {
    // No controller for it (cgroup v2 without controllers): unknown is shown as zero, said once.
    if (sampled_us_ == 0) LOG(warn, "load of this node is unknown: {}", now.error().what());
    sampled_us_ = monotonic_us();
    return;
  }
  const std::int64_t now_us = monotonic_us();
  if (sampled_us_ != 0 && now_us > sampled_us_ && *now >= cpu_us_ && cpu_us_ != 0) {
    const double cores =
        static_cast<double>(*now - cpu_us_) / static_cast<double>(now_us - sampled_us_);
    load_ = load_ * 0.5 + cores * 0.5;
  }
  cpu_us_ = *now;
  sampled_us_ = now_us;
}

api::NodeInfo NodeMonitor::info() const {
  api::NodeInfo info;
  info.set_name(config_.env.node.value);
  info.set_address(config_.listen);
  info.set_alive(true);
  info.set_version(version);
  info.set_cores(cores_);
  info.set_speed(config_.core_speed);
  info.set_memory_limit_bytes(memory_limit_bytes_);
  info.set_accepts(config_.accepts);
  info.set_kernel(kernel_);
  info.set_boot(boot_);
  // A node without the controller: unknown is shown as zero; sample() has said it.
  if (auto used = memory_used_bytes(); used.ok()) info.set_memory_used_bytes(*used);
  const std::lock_guard lock(mutex_);
  info.set_load(load_);
  return info;
}

}  // namespace godwit::daemon
