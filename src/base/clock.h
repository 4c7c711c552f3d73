// Time as integers with the unit in the name.
#pragma once

#include <time.h>

#include <cstdint>

namespace godwit {

constexpr std::int64_t second_ns = 1'000'000'000;

std::int64_t monotonic_ns();         // CLOCK_MONOTONIC of the calling process's time namespace.
std::int64_t boottime_ns();          // CLOCK_BOOTTIME, likewise.
std::int64_t monotonic_coarse_ns();  // As it was at the last tick: up to 10 ms ago.
std::int64_t monotonic_raw_ns();     // CLOCK_MONOTONIC_RAW, which nothing slews.
std::int64_t realtime_ns();          // CLOCK_REALTIME: the only clock that namespaces don't shift.
inline std::int64_t to_ns(const timespec& t) { return t.tv_sec * second_ns + t.tv_nsec; }
inline std::int64_t monotonic_us() { return monotonic_ns() / 1000; }
inline std::int64_t realtime_us() { return realtime_ns() / 1000; }

}  // namespace godwit
