#include "memory/moved_pages.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace godwit::memory {
namespace {

TEST(MovedPages, ToAndFroLeavesNothing) {
  MovedPages moved;
  PageSet here, there;
  here.add(100, 64);
  there.add(9'000, 64);
  for (int hop = 0; hop < 1'000; ++hop) {
    moved.move(here, 100, 9'000, 64);
    EXPECT_EQ(moved.runs(), 1u);
    EXPECT_EQ(moved.place_of(101), 9'001u);
    EXPECT_EQ(moved.source_of(9'063), 163u);
    moved.move(there, 9'000, 100, 64);
    EXPECT_TRUE(moved.empty());
  }
}

// Against a map of single pages.
TEST(MovedPages, AgreesWithPagesThatAreFollowedOneByOne) {
  for (unsigned seed = 1; seed <= 200; ++seed) {
    std::mt19937 random(seed);
    auto below = [&](std::uint64_t n) {
      return std::uniform_int_distribution<std::uint64_t>(0, n - 1)(random);
    };
    constexpr std::uint64_t room = 200;
    MovedPages moved;
    PageSet missing;
    std::map<std::uint64_t, std::uint64_t> source;  // By place; of missing pages alone.
    for (std::uint64_t page = 0; page < room; ++page)
      if (below(4) != 0) missing.add(page), source[page] = page;
    for (int step = 0; step < 60; ++step) {
      const std::uint64_t pages = 1 + below(30);
      const std::uint64_t from = below(room - pages), to = below(room - pages);
      if (from < to + pages && to < from + pages) continue;  // mremap(2) refuses.
      moved.move(missing, from, to, pages);
      std::map<std::uint64_t, std::uint64_t> taken;
      for (std::uint64_t page = from; page < from + pages; ++page)
        if (auto at = source.find(page); at != source.end()) taken[page - from + to] = at->second;
      for (std::uint64_t i = 0; i < pages; ++i) source.erase(from + i), source.erase(to + i);
      source.insert(taken.begin(), taken.end());
      missing.remove(from, pages);
      missing.remove(to, pages);
      for (const auto& [place, at] : taken) missing.add(place);
      if (below(3) == 0) {  // Some arrive.
        const std::uint64_t page = below(room);
        missing.remove(page), source.erase(page);
      }
      for (const auto& [place, at] : source) {
        ASSERT_EQ(moved.source_of(place), at) << "seed " << seed << " step " << step;
        ASSERT_EQ(moved.place_of(at), place) << "seed " << seed << " step " << step;
      }
    }
  }
}

}  // namespace
}  // namespace godwit::memory
