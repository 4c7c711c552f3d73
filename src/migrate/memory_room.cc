#include "migrate/memory_room.h"

#include <algorithm>
#include <cstdlib>

#include "base/io.h"
#include "base/log.h"
#include "sys/cgroup.h"

namespace godwit::migrate {
namespace {

// What stays for page tables, for everybody who grows between two looks, and for other arrivals.
constexpr std::uint64_t margin_bytes = 24 << 20;
constexpr std::uint64_t look_bytes_min = 1 << 20, look_bytes_max = 256 << 20;

}  // namespace

Result<std::uint64_t> MemoryRoom::available_bytes() const {
  if (limit_bytes_ != 0) {
    const auto group = TRY(sys::CgroupGroup::open(cgroup_));
    const std::uint64_t used = TRY(group.memory_usage_bytes());
    return limit_bytes_ - std::min(limit_bytes_, used);
  }
  const std::string text = TRY(read_file("/proc/meminfo"));
  constexpr std::string_view key = "MemAvailable:";
  const std::size_t at = text.find(key);
  if (at == std::string::npos)
    return make_error(Errc::unsupported, "/proc/meminfo has no MemAvailable");
  return std::strtoull(text.c_str() + at + key.size(), nullptr, 10) * 1024;
}

Result<void> MemoryRoom::take(std::uint64_t bytes) {
  const auto taken = static_cast<std::int64_t>(bytes);
  if (until_look_bytes_.fetch_sub(taken) > taken) return {};
  const std::lock_guard lock(mutex_);
  if (until_look_bytes_ > 0) return {};  // Another thread has just looked.
  return need(bytes);
}

Result<void> MemoryRoom::need(std::uint64_t bytes) {
  Result<std::uint64_t> available = available_bytes();
  if (!available.ok()) {
    LOG(info, "memory that is left is unknown: {}", available.error().what());
    until_look_bytes_ = INT64_MAX / 2;
    return {};
  }
  if (*available < margin_bytes + bytes)
    return make_error(Errc::refused, "this node's memory ends: {} MiB are left, {} to come",
                      *available >> 20, bytes >> 20);
  until_look_bytes_ = static_cast<std::int64_t>(
      std::clamp((*available - margin_bytes) / 2, look_bytes_min, look_bytes_max));
  return {};
}

}  // namespace godwit::migrate
