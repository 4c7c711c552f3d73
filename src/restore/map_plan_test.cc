#include "restore/map_plan.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace godwit::restore {
namespace {

image::Vma& add(image::Mm& mm, std::uint64_t start, std::uint64_t end, std::uint32_t prot = 3) {
  image::Vma& v = *mm.add_vmas();
  v.set_start(start), v.set_end(end), v.set_prot(prot);
  return v;
}

std::string plan(const image::Mm& have, const image::Mm& want) {
  std::string text;
  for (const MapChange& c : plan_changes(VmaList(have), VmaList(want))) {
    const char* names[] = {"unmap", "map", "adjust"};
    text += fmt::format("{} {:x}-{:x};", names[static_cast<int>(c.kind)], c.start, c.end);
  }
  return text;
}

TEST(MapPlan, EqualListsNeedNothing) {
  image::Mm mm;
  for (std::uint64_t i = 0; i < 1000; ++i) add(mm, i << 20, (i << 20) + 4096, i % 4);
  EXPECT_EQ(plan(mm, mm), "");
}

TEST(MapPlan, EverythingIsMappedIntoAnEmptySpaceAndUnmappedFromAFullOne) {
  image::Mm none, two;
  add(two, 0x1000, 0x3000), add(two, 0x3000, 0x4000, 1);
  EXPECT_EQ(plan(none, two), "map 1000-3000;map 3000-4000;");
  EXPECT_EQ(plan(two, none), "unmap 1000-4000;");
}

TEST(MapPlan, GrowthAndShrinkingTouchOnlyTheEnds) {
  image::Mm small, large;
  add(small, 0x4000, 0x6000), add(large, 0x2000, 0x9000);
  EXPECT_EQ(plan(small, large), "map 2000-4000;map 6000-9000;");
  EXPECT_EQ(plan(large, small), "unmap 2000-4000;unmap 6000-9000;");
}

TEST(MapPlan, ProtectionChangesKeepThePages) {
  image::Mm whole, split;
  add(whole, 0x1000, 0x9000);
  add(split, 0x1000, 0x3000), add(split, 0x3000, 0x5000, 0), add(split, 0x5000, 0x9000);
  EXPECT_EQ(plan(whole, split), "adjust 3000-5000;");
  EXPECT_EQ(plan(split, whole), "adjust 3000-5000;");
}

TEST(MapPlan, AnotherFileOrOffsetReplacesTheMapping) {
  image::Mm a, b;
  for (image::Mm* mm : {&a, &b}) {
    image::FileRef& f = *mm->add_mapped();
    f.set_id(mm == &a ? 1 : 7);  // Numbers may differ between images.
    f.set_path("/lib/x");
    image::Vma& v = add(*mm, 0x1000, 0x5000, 1);
    v.set_kind(image::Vma::FILE), v.set_file(f.id()), v.set_pgoff_bytes(0x2000);
  }
  EXPECT_EQ(plan(a, b), "");
  b.mutable_vmas(0)->set_pgoff_bytes(0x3000);
  EXPECT_EQ(plan(a, b), "map 1000-5000;");
  b.mutable_vmas(0)->set_pgoff_bytes(0x2000);
  b.mutable_mapped(0)->set_path("/lib/y");
  EXPECT_EQ(plan(a, b), "map 1000-5000;");
  // The tail of the same mapping, with its offset: nothing but the head goes.
  b.mutable_mapped(0)->set_path("/lib/x");
  b.mutable_vmas(0)->set_start(0x2000), b.mutable_vmas(0)->set_pgoff_bytes(0x3000);
  EXPECT_EQ(plan(a, b), "unmap 1000-2000;");
}

TEST(MapPlan, HugePageAdviceThatCannotBeTakenBackReplacesTheMapping) {
  image::Mm a, b;
  add(a, 0x1000, 0x5000).set_flags(image::VMA_HUGEPAGE), add(b, 0x1000, 0x5000);
  EXPECT_EQ(plan(a, b), "map 1000-5000;");
  EXPECT_EQ(plan(b, a), "adjust 1000-5000;");
}

// The model: an address space as an array of pages, each with what backs it and its attributes.
TEST(MapPlan, AppliedChangesAlwaysLeadToTheWantedList) {
  std::uint64_t seed = 1;
  auto random = [&](std::uint64_t n) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % n;
  };
  constexpr std::uint64_t pages = 40;
  auto make = [&] {
    image::Mm mm;
    for (std::uint64_t at = 1 + random(4); at + 1 < pages; at += random(3)) {
      std::uint64_t end = std::min(pages, at + 1 + random(6));
      image::Vma& v = add(mm, at << 12, end << 12, static_cast<std::uint32_t>(random(3)));
      v.set_growsdown(random(5) == 0);
      at = end;
    }
    return mm;
  };
  using Model = std::vector<std::string>;
  auto text = [](const image::Vma& v) { return fmt::format("{}{}", v.prot(), v.growsdown()); };
  auto model = [&](const image::Mm& mm) {
    Model m(pages);
    for (const image::Vma& v : mm.vmas()) {
      for (std::uint64_t p = v.start() >> 12; p < v.end() >> 12; ++p) m[p] = text(v);
    }
    return m;
  };
  for (int round = 0; round < 2000; ++round) {
    image::Mm have = make(), want = make();
    Model m = model(have);
    std::uint64_t last = 0;
    for (const MapChange& c : plan_changes(VmaList(have), VmaList(want))) {
      ASSERT_GE(c.start, last) << "round " << round;
      ASSERT_LT(c.start, c.end);
      last = c.end;
      for (std::uint64_t p = c.start >> 12; p < c.end >> 12; ++p) {
        ASSERT_EQ(c.kind == MapChange::Kind::unmap, c.want == nullptr);
        ASSERT_TRUE(c.kind == MapChange::Kind::map || !m[p].empty());
        m[p] = c.want == nullptr ? "" : text(*c.want);
      }
    }
    ASSERT_EQ(m, model(want)) << "round " << round;
  }
}

}  // namespace
}  // namespace godwit::restore
