// Trackers by themselves; what they find in rounds is rounds_test.cc's business.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "base/ids.h"
#include "memory/dirty_tracker.h"
#include "memory/testbed.h"
#include "memory/zero_page.h"
#include "sys/pagemap.h"

namespace godwit::memory::testing {
namespace {

TEST(ZeroPage, EveryBitOfAPageCounts) {
  alignas(page_bytes) static std::byte page[page_bytes];
  EXPECT_TRUE(is_zero_page(page));
  for (std::size_t i = 0; i < page_bytes; ++i) {
    page[i] = std::byte{0x80};
    ASSERT_FALSE(is_zero_page(page)) << "byte " << i;
    page[i] = std::byte{0};
  }
}

// A child with 8 pages of content at `arena`, of 16; writes page n when told so.
constexpr std::uint64_t arena = 0x551000000000;
Child writer(Shared* shared) {
  return Child::run([shared] {
    auto* memory = static_cast<char*>(::mmap(reinterpret_cast<void*>(arena), 16 * page_bytes,
                                             PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    for (int i = 0; i < 8; ++i) memory[i * page_bytes] = 1;
    shared->state = -1;
    while (true) {
      const int page = shared->command;
      if (page == 0 || page == shared->state) continue;
      memory[page * page_bytes] = 2;
      shared->state = page;
    }
    return 0;
  });
}

// Of a child that has its content.
Result<std::unique_ptr<DirtyTracker>> track(Child& child, Shared* shared) {
  await([=] { return shared->state == -1; }, "the child");
  child.stop();
  UniqueFd uffd = child.make_uffd();
  child.go();
  return make_uffd_tracker(child.pid(), std::move(uffd));
}

PageSet dirty(DirtyTracker& tracker, HarvestMode mode) {
  Result<Harvest> harvest = tracker.harvest(mode);
  EXPECT_TRUE(harvest.ok()) << harvest.error().what();
  return harvest.ok() ? harvest->dirty.within(arena / page_bytes, 16) : PageSet();
}

void write_page(Shared* shared, int page) {
  shared->command = page;
  await([=] { return shared->state == page; }, "a write");
}

void tells_each_write_once(DirtyTracker& tracker, Shared* shared) {
  using Runs = std::vector<PageRun>;
  const std::uint64_t first = arena / page_bytes;
  EXPECT_EQ(dirty(tracker, HarvestMode::take).runs(), (Runs{{.page = first, .pages = 8}}));
  EXPECT_TRUE(dirty(tracker, HarvestMode::take).empty());
  write_page(shared, 3);
  write_page(shared, 12);  // Was a hole.
  const Runs both{{.page = first + 3, .pages = 1}, {.page = first + 12, .pages = 1}};
  EXPECT_EQ(dirty(tracker, HarvestMode::look).runs(), both);
  EXPECT_EQ(dirty(tracker, HarvestMode::glance).runs(), both);
  EXPECT_EQ(dirty(tracker, HarvestMode::take).runs(), both);
  EXPECT_TRUE(dirty(tracker, HarvestMode::look).empty());
}

TEST(UffdTracker, TellsEachWriteOnce) {
  if (!uffd_tracking_supported()) GTEST_SKIP() << "no PAGEMAP_SCAN or no userfaultfd WP_ASYNC";
  Shared* shared = make_shared_page();
  Child child = writer(shared);
  auto tracker = track(child, shared);
  ASSERT_TRUE(tracker.ok()) << tracker.error().what();
  tells_each_write_once(**tracker, shared);
}

// What lies between two anonymous areas is looked at with them, and is none of theirs.
TEST(UffdTracker, TellsNothingOfSharedMemoryBetweenAreas) {
  if (!uffd_tracking_supported()) GTEST_SKIP() << "no PAGEMAP_SCAN or no userfaultfd WP_ASYNC";
  Shared* shared = make_shared_page();
  Child child = Child::run([shared] {
    for (int part : {0, 1, 2}) {
      auto* memory = static_cast<char*>(
          ::mmap(reinterpret_cast<void*>(arena + part * 4 * page_bytes), 4 * page_bytes,
                 PROT_READ | PROT_WRITE,
                 (part == 1 ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
      std::memset(memory, 1, 4 * page_bytes);
    }
    shared->state = -1;
    while (true) ::pause();
    return 0;
  });
  auto tracker = track(child, shared);
  ASSERT_TRUE(tracker.ok()) << tracker.error().what();
  for (HarvestMode mode : {HarvestMode::take, HarvestMode::look, HarvestMode::glance}) {
    Result<Harvest> harvest = (*tracker)->harvest(mode);
    ASSERT_TRUE(harvest.ok()) << harvest.error().what();
    PageSet outside = harvest->dirty;
    outside.remove(harvest->content);
    EXPECT_TRUE(outside.empty()) << "mode " << static_cast<int>(mode);
    EXPECT_EQ(harvest->content.count(arena / page_bytes, 12), 8u);
  }
}

TEST(SoftDirtyTracker, TellsEachWriteOnce) {
  if (!sys::soft_dirty_supported()) GTEST_SKIP() << "this kernel has no soft-dirty bits";
  Shared* shared = make_shared_page();
  Child child = writer(shared);
  await([=] { return shared->state == -1; }, "the child");
  auto tracker = make_soft_dirty_tracker(child.pid(), [&](bool stop) -> Result<void> {
    if (stop)
      child.stop();
    else
      child.go();
    return {};
  });
  ASSERT_TRUE(tracker.ok()) << tracker.error().what();
  tells_each_write_once(**tracker, shared);
}

TEST(SoftDirtyTracker, IsRefusedWithAReasonWhereItCannotWork) {
  auto tracker = make_soft_dirty_tracker(::getpid(), {});
  ASSERT_FALSE(tracker.ok());
  EXPECT_EQ(tracker.error().code(), Errc::unsupported);
}

TEST(UffdTracker, IsRefusedNearTheLimitOfMappings) {
  if (!uffd_tracking_supported()) GTEST_SKIP() << "no PAGEMAP_SCAN or no userfaultfd WP_ASYNC";
  const std::uint64_t limit = map_count_max().value();
  if (limit > 200'000) GTEST_SKIP() << "vm.max_map_count is " << limit;
  Shared* shared = make_shared_page();
  Child child = Child::run([=] {
    // Neighbours that differ don't merge.
    for (std::uint64_t i = 0; i < limit - map_count_margin; ++i)
      ::mmap(reinterpret_cast<void*>(arena + i * page_bytes), page_bytes,
             i % 2 == 0 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    shared->state = 1;
    while (true) ::pause();
    return 0;
  });
  await([=] { return shared->state == 1; }, "the mappings");
  child.stop();
  auto tracker = make_uffd_tracker(child.pid(), child.make_uffd());
  ASSERT_FALSE(tracker.ok());
  EXPECT_EQ(tracker.error().code(), Errc::unsupported);
  EXPECT_NE(tracker.error().what().find("max_map_count"), std::string::npos);
}

}  // namespace
}  // namespace godwit::memory::testing
