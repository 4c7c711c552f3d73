// When to stop pre-copy rounds, and what then. Pure.
//
// With dirty rate D and bandwidth B, a round that sends R bytes leaves about R * D/B dirty ones:
// rounds shrink geometrically while D < B. The best moment to freeze is when the rest fits into the
// downtime target at B; waiting longer only costs bandwidth. If rounds stop shrinking (D near B, or
// a working set that is written all the time), no number of rounds helps: then the rest goes by
// post-copy (auto, hybrid), or is sent frozen (precopy, which promises no remote page faults
// afterwards).
//
// D is measured by what the last round found written, over the time in which it was written. B is
// measured on the last round that sent enough to tell (small rounds measure latency, not
// bandwidth).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "wire/worker.pb.h"

namespace godwit::migrate {

struct RoundResult {
  std::uint64_t bytes = 0;  // Sent in this round.
  std::int64_t us = 0;      // From the harvest to the acknowledgement.
};

enum class Next { another_round, freeze, freeze_for_postcopy };

struct RoundDecision {
  Next next;
  const char* reason;  // For people: history and `explain` show it.
};

class RoundPolicy {
 public:
  static constexpr int rounds_max = 30;
  // A round must leave less than this fraction of what the one before left, or rounds are of no
  // use.
  static constexpr double shrink_max = 0.8;
  static constexpr std::int64_t default_downtime_target_us = 10'000;
  // Below this many bytes a round is all latency; B comes from a larger one.
  static constexpr std::uint64_t bandwidth_sample_bytes = 4 << 20;

  RoundPolicy(wire::Mode mode, std::int64_t downtime_target_us, bool tracker_works,
              bool postcopy_works);

  // Before anything was sent.
  RoundDecision first() const;
  // After a round was acknowledged; `dirty_bytes` were written meanwhile.
  RoundDecision after(const RoundResult& round, std::uint64_t dirty_bytes);

  std::uint64_t bytes_per_s() const { return bytes_per_s_; }
  std::uint64_t dirty_bytes_per_s() const { return dirty_bytes_per_s_; }

 private:
  RoundDecision give_up_rounds(const char* reason) const;

  wire::Mode mode_;
  std::int64_t target_us_;
  bool tracker_works_;
  bool postcopy_works_;
  int rounds_ = 0;
  std::uint64_t bytes_per_s_ = 0;
  std::uint64_t dirty_bytes_per_s_ = 0;
  std::optional<std::uint64_t> dirty_before_;
  int not_shrinking_ = 0;
};

}  // namespace godwit::migrate
