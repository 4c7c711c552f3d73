#include "memory/page_set.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace godwit::memory {
namespace {

std::set<std::uint64_t> flatten(const PageSet& set) {
  std::set<std::uint64_t> out;
  std::uint64_t previous_end = 0;
  set.for_each_run([&](const PageRun& run) {
    EXPECT_GT(run.pages, 0u);
    EXPECT_TRUE(out.empty() || run.page > previous_end) << "runs are maximal and in order";
    for (std::uint64_t i = 0; i < run.pages; ++i) out.insert(run.page + i);
    previous_end = run.end();
  });
  return out;
}

// Against std::set, over ranges that straddle words and chunks.
TEST(PageSet, AgreesWithAPlainSet) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 60; ++round) {
    PageSet sets[2];
    std::set<std::uint64_t> plain[2];
    for (int i = 0; i < 2; ++i) {
      for (int step = 0; step < 40; ++step) {
        const std::uint64_t page = 32'600 + random() % 400 + (random() % 3) * 32'768;
        const std::uint64_t pages = 1 + random() % 150;
        const bool adds = random() % 3 != 0;
        if (adds)
          sets[i].add(page, pages);
        else
          sets[i].remove(page, pages);
        for (std::uint64_t p = page; p < page + pages; ++p) {
          if (adds)
            plain[i].insert(p);
          else
            plain[i].erase(p);
        }
      }
      ASSERT_EQ(flatten(sets[i]), plain[i]);
      ASSERT_EQ(sets[i].count(), plain[i].size());
      ASSERT_EQ(sets[i].empty(), plain[i].empty());
    }
    auto check = [&](auto operation, auto wanted) {
      PageSet result = sets[0];
      operation(result);
      std::set<std::uint64_t> expected;
      for (std::uint64_t p = 0; p < 150'000; ++p)
        if (wanted(plain[0].contains(p), plain[1].contains(p), p)) expected.insert(p);
      ASSERT_EQ(flatten(result), expected);
    };
    check([&](PageSet& s) { s.add(sets[1]); }, [](bool a, bool b, auto) { return a || b; });
    check([&](PageSet& s) { s.remove(sets[1]); }, [](bool a, bool b, auto) { return a && !b; });
    check([&](PageSet& s) { s.keep_only(sets[1]); }, [](bool a, bool b, auto) { return a && b; });
    check([&](PageSet& s) { s = s.within(32'700, 33'000); },
          [](bool a, bool, std::uint64_t p) { return a && p >= 32'700 && p < 65'700; });
    EXPECT_EQ(sets[0].count(32'700, 33'000), sets[0].within(32'700, 33'000).count());
  }
}

TEST(PageSet, RunsCrossChunksAndHonourTheirLimit) {
  PageSet set;
  set.add(32'768 - 5, 10);
  EXPECT_EQ(set.runs(), (std::vector<PageRun>{{.page = 32'763, .pages = 10}}));
  EXPECT_EQ(set.next_run(0, 3), (PageRun{.page = 32'763, .pages = 3}));
  EXPECT_EQ(set.next_run(32'770), (PageRun{.page = 32'770, .pages = 3}));
  EXPECT_EQ(set.next_run(32'773).pages, 0u);
  set.add(0, 64);
  EXPECT_EQ(set.next_run(0), (PageRun{.page = 0, .pages = 64}));
}

TEST(PageSet, RemovingTerabytesOfNothingIsFree) {
  PageSet set;
  set.add(1ull << 34, 3);
  set.remove(0, 1ull << 40);
  EXPECT_TRUE(set.empty());
}

}  // namespace
}  // namespace godwit::memory
