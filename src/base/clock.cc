#include "base/clock.h"

#include <ctime>

namespace godwit {
namespace {
std::int64_t read_ns(clockid_t clock) {
  timespec ts{};
  ::clock_gettime(clock, &ts);
  return static_cast<std::int64_t>(ts.tv_sec) * 1'000'000'000 + ts.tv_nsec;
}
}  // namespace

std::int64_t monotonic_ns() { return read_ns(CLOCK_MONOTONIC); }
std::int64_t boottime_ns() { return read_ns(CLOCK_BOOTTIME); }
std::int64_t monotonic_coarse_ns() { return read_ns(CLOCK_MONOTONIC_COARSE); }
std::int64_t monotonic_raw_ns() { return read_ns(CLOCK_MONOTONIC_RAW); }
std::int64_t realtime_ns() { return read_ns(CLOCK_REALTIME); }

}  // namespace godwit
