#include "migrate/clock_difference.h"

#include <gtest/gtest.h>

#include <random>

namespace godwit::migrate {
namespace {

constexpr std::int64_t hour_ns = 3'600'000'000'000;

TEST(ClockDifference, IsBehindByTheWayThere) {
  ClockDifference difference;
  difference.add(1'000 + hour_ns, 1'050, 1'100 + hour_ns);
  EXPECT_EQ(difference.ns(), hour_ns - 50);
  EXPECT_EQ(difference.width_ns(), 100);
}

TEST(ClockDifference, ASlowProbeTakesNothingFromWhatAQuickOneSaid) {
  ClockDifference difference;
  difference.add(0, 20 - hour_ns, 40);
  difference.add(1'000'000, 4'500'000 - hour_ns, 4'500'010);  // Slow there, quick back.
  EXPECT_EQ(difference.ns(), hour_ns - 20);
  EXPECT_LE(difference.width_ns(), 40);
}

// Quickest ways of 20 us each, most probes late by up to milliseconds on either way.
TEST(ClockDifference, OfManyProbesOnABusyMachineTheQuickestCounts) {
  for (unsigned seed = 0; seed < 100; ++seed) {
    std::mt19937_64 random(seed);
    auto way = [&] {
      const bool late = random() % 4 != 0;
      return 20'000 + static_cast<std::int64_t>(random() % 4'000) +
             (late ? static_cast<std::int64_t>(random() % 5'000'000) : 0);
    };
    const std::int64_t ahead = static_cast<std::int64_t>(random() % hour_ns) - hour_ns / 2;
    ClockDifference difference;
    std::int64_t now = 0;
    for (int probe = 0; probe < 24; ++probe) {
      const std::int64_t sent = now;
      const std::int64_t there = sent + way();
      now = there + way();
      difference.add(sent + ahead, there, now + ahead);
    }
    EXPECT_LE(difference.ns(), ahead) << "seed " << seed;
    EXPECT_LE(ahead - difference.ns(), difference.width_ns()) << "seed " << seed;
    EXPECT_LT(ahead - difference.ns(), 1'000'000) << "seed " << seed;
  }
}

}  // namespace
}  // namespace godwit::migrate
