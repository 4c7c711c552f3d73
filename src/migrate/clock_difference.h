// How much one clock is ahead of another node's, found out by messages to and fro. Pure.
//
// A probe leaves at s, is answered at t by the other clock, and the answer is here at r: at that t
// our clock showed something between s and r, so the difference lies between s - t and r - t. Every
// probe gives such an interval, and the truth is in all of them, however slow most probes were.
//
// Taken is the lower end of what they have in common: wrong by the quickest way there, and never
// too much, so that a program's clock can't jump by more than the time it stood still. (The middle
// is nearer, but on a machine with load 25 it let CLOCK_MONOTONIC jump 0.7 ms too far; one message
// that says "it is now s" was 3 to 16 ms late there, at every move.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace godwit::migrate {

class ClockDifference {
 public:
  void add(std::int64_t sent_ns, std::int64_t there_ns, std::int64_t received_ns) {
    least_ns_ = std::max(least_ns_, sent_ns - there_ns);
    most_ns_ = std::min(most_ns_, received_ns - there_ns);
  }

  // Preconditions: there was a probe. How much our clock is ahead, at least.
  std::int64_t ns() const { return least_ns_; }
  // It is ahead by at most this much more.
  std::int64_t width_ns() const { return most_ns_ - least_ns_; }

 private:
  // Far enough apart for any clock, near enough to subtract.
  std::int64_t least_ns_ = std::numeric_limits<std::int64_t>::min() / 4;
  std::int64_t most_ns_ = std::numeric_limits<std::int64_t>::max() / 4;
};

}  // namespace godwit::migrate
