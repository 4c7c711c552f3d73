#include "migrate/round_policy.h"

#include <gtest/gtest.h>

namespace godwit::migrate {
namespace {

constexpr std::uint64_t gib = 1ull << 30;

// Runs the policy against a program that writes `dirty` bytes a second over a working set, and a
// link of `bandwidth` bytes a second. Returns the last decision and the number of rounds.
struct Outcome {
  RoundDecision last;
  int rounds;
};
Outcome simulate(RoundPolicy policy, std::uint64_t memory, double dirty, double bandwidth) {
  RoundDecision d = policy.first();
  std::uint64_t rest = memory;
  int rounds = 0;
  while (d.next == Next::another_round) {
    double seconds = static_cast<double>(rest) / bandwidth + 0.0005;
    auto written =
        static_cast<std::uint64_t>(std::min(dirty * seconds, static_cast<double>(memory)));
    d = policy.after({rest, static_cast<std::int64_t>(seconds * 1e6)}, written);
    rest = written;
    ++rounds;
  }
  return {d, rounds};
}

TEST(RoundPolicy, StopNeverMakesARound) {
  EXPECT_EQ(RoundPolicy(wire::STOP, 0, true, true).first().next, Next::freeze);
}

TEST(RoundPolicy, PostcopyNeverMakesARound) {
  EXPECT_EQ(RoundPolicy(wire::POSTCOPY, 0, true, true).first().next, Next::freeze_for_postcopy);
}

TEST(RoundPolicy, IdleProgramIsFrozenAfterOneRound) {
  Outcome o = simulate(RoundPolicy(wire::AUTO, 10'000, true, true), gib, 0, 3e9);
  EXPECT_EQ(o.last.next, Next::freeze);
  EXPECT_EQ(o.rounds, 1);
}

TEST(RoundPolicy, RoundsGoOnUntilTheRestFitsTheTarget) {
  Outcome o = simulate(RoundPolicy(wire::PRECOPY, 4'000, true, true), gib, 3e8, 3e9);
  EXPECT_EQ(o.last.next, Next::freeze);
  EXPECT_GE(o.rounds, 2);
  EXPECT_LE(o.rounds, 6);
}

TEST(RoundPolicy, AutoGoesOverToPostcopyWhenDirtyRateExceedsLink) {
  Outcome o = simulate(RoundPolicy(wire::AUTO, 10'000, true, true), gib, 6e9, 3e9);
  EXPECT_EQ(o.last.next, Next::freeze_for_postcopy);
  EXPECT_LE(o.rounds, 3);
}

TEST(RoundPolicy, PrecopyStopsWhenDirtyRateExceedsLink) {
  Outcome o = simulate(RoundPolicy(wire::PRECOPY, 10'000, true, true), gib, 6e9, 3e9);
  EXPECT_EQ(o.last.next, Next::freeze);
  EXPECT_LE(o.rounds, 3);
}

TEST(RoundPolicy, HybridMakesOneRound) {
  Outcome o = simulate(RoundPolicy(wire::HYBRID, 10'000, true, true), gib, 0, 3e9);
  EXPECT_EQ(o.last.next, Next::freeze_for_postcopy);
  EXPECT_EQ(o.rounds, 1);
}

TEST(RoundPolicy, WithoutTrackerAutoUsesPostcopyAndPrecopyStops) {
  EXPECT_EQ(RoundPolicy(wire::AUTO, 0, false, true).first().next, Next::freeze_for_postcopy);
  EXPECT_EQ(RoundPolicy(wire::PRECOPY, 0, false, true).first().next, Next::freeze);
  EXPECT_EQ(RoundPolicy(wire::AUTO, 0, false, false).first().next, Next::freeze);
}

TEST(RoundPolicy, AlwaysEnds) {
  for (double ratio = 0.05; ratio < 3; ratio += 0.05)
    for (wire::Mode mode : {wire::AUTO, wire::PRECOPY, wire::HYBRID})
      EXPECT_LE(simulate(RoundPolicy(mode, 100, true, true), gib, ratio * 3e9, 3e9).rounds,
                RoundPolicy::rounds_max);
}

}  // namespace
}  // namespace godwit::migrate
