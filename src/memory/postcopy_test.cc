// Post-copy between real processes: the program goes on in the skeleton while its pages are still
// on the way, and checks them itself; afterwards every page is compared where it cannot run.
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include "base/ids.h"
#include "memory/dirty_tracker.h"
#include "memory/scan.h"
#include "memory/testbed.h"

namespace godwit::memory::testing {
namespace {

// Where every sanitizer leaves room for programs.
constexpr std::uint64_t arena = 0x551000000000;

void* map_at(std::uint64_t at, std::size_t bytes) {
  void* memory = ::mmap(reinterpret_cast<void*>(at), bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  INVARIANT(memory != MAP_FAILED, "mmap errno={}", errno);
  return memory;
}

// What word 3 of page `i` holds; every 8th page was never written.
std::uint64_t stamp(std::uint64_t i) { return i % 8 == 7 ? 0 : (i + 1) * 0x9e3779b97f4a7c15ull; }

volatile std::uint64_t& word(std::uint64_t page) {
  return *reinterpret_cast<volatile std::uint64_t*>(arena + page * page_bytes + 24);
}

void stamp_pages(std::uint64_t pages) {
  for (std::uint64_t i = 0; i < pages; ++i)
    if (stamp(i) != 0) word(i) = stamp(i);
}

// The program: stamps, waits for command 1, then does `after` with its memory; state 3 is success.
Child program(Shared* shared, std::uint64_t pages, const std::function<bool()>& after) {
  return Child::run([=] {
    map_at(arena, pages * page_bytes);
    stamp_pages(pages);
    shared->state = 1;
    while (shared->command == 0) {
    }
    shared->state = after() ? 3 : 4;
    while (shared->command != 9) {
    }
    return 0;
  });
}

bool check_at_random(std::uint64_t pages, int times, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  for (int i = 0; i < times; ++i) {
    const std::uint64_t page = random() % pages;
    if (word(page) != stamp(page)) return false;
  }
  return true;
}

bool check_all(std::uint64_t pages) {
  for (std::uint64_t i = 0; i < pages; ++i)
    if (word(i) != stamp(i)) return false;
  return true;
}

// Moves the program after no or some rounds, lets it run with command 1, waits for success.
PagerStats postcopy(Child& source, Child& target, Shared* shared, int rounds, Bed& bed) {
  await([&] { return shared->state == 1; }, "the program");
  if (rounds > 0) bed.arm();
  for (int i = 0; i < rounds; ++i) {
    bed.prepare();
    bed.round(i + 1 < rounds || rounds == 1 ? RoundKind::precopy : RoundKind::announce);
  }
  bed.freeze();
  const user_regs_struct regs = source.registers();
  const std::uint64_t stack = regs.rsp & ~(page_bytes - 1);
  bed.round(RoundKind::last_postcopy,
            {{.space = bed.space(), .start = stack, .end = stack + 2 * page_bytes}});
  EXPECT_EQ(bed.last_received.pages_pending, bed.memory().pages_pending());
  bed.start_postcopy();
  shared->command = 1;
  PagerStats stats = bed.drain();
  await([&] { return shared->state >= 3; }, "the program's verdict");
  EXPECT_EQ(shared->state, 3) << "the program found its memory wrong";
  EXPECT_EQ(stats.pages_left, 0u);
  (void)target;
  return stats;
}

TEST(Postcopy, AProgramThatReadsAtRandomFindsEveryPage) {
  constexpr std::uint64_t pages = 16'384;
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source =
      program(shared, pages, [] { return check_at_random(pages, 3'000, 5) && check_all(pages); });
  Bed bed(source, target, {.track = false});
  PagerStats stats = postcopy(source, target, shared, 0, bed);
  EXPECT_GT(stats.faults, 0u);
  EXPECT_GE(stats.pages_received, pages / 8 * 7);
  EXPECT_GE(bed.drain_stats.pages_requested, 1u);
  // Stopped again, it can be compared with where it came from.
  target.stop();
  MapsView maps = read_areas(target.pid()).value();
  Harvest harvest;
  ASSERT_TRUE(scan_content(target.pid(), maps, 0, true, harvest).ok());
  EXPECT_EQ(harvest.content.count(arena / page_bytes, pages) > pages / 8 * 7 - 1, true);
}

TEST(Postcopy, HybridAfterRoundsIsExact) {
  if (!uffd_tracking_supported()) GTEST_SKIP() << "no dirty tracking on this kernel";
  constexpr std::uint64_t pages = 8'192;
  for (int rounds : {1, 2, 3}) {
    SCOPED_TRACE(fmt::format("{} rounds", rounds));
    Shared* shared = make_shared_page();
    Child target = Child::skeleton();
    Child source = Child::run([=] {
      map_at(arena, pages * page_bytes);
      stamp_pages(pages);
      shared->state = 1;
      // Each page is rewritten again and again, to a value that its neighbour tells: word 4 is the
      // number of the pass, word 3 its product with the stamp.
      std::mt19937_64 random(3);
      for (std::uint64_t pass = 1; shared->command == 0; ++pass) {
        const std::uint64_t page = random() % pages;
        volatile std::uint64_t* p = &word(page);
        p[0] = pass * (page + 1);
        p[1] = pass;
        shared->counter = pass;
      }
      for (std::uint64_t page = 0; page < pages; ++page) {
        volatile std::uint64_t* p = &word(page);
        if (p[1] != 0 ? p[0] != p[1] * (page + 1) : p[0] != stamp(page)) {
          shared->state = 4;
          return 1;
        }
      }
      shared->state = 3;
      while (shared->command != 9) {
      }
      return 0;
    });
    Bed bed(source, target);
    postcopy(source, target, shared, rounds, bed);
    if (HasFailure()) return;
  }
}

TEST(Postcopy, ChangesOfMappingsDuringTheDrainAreExact) {
  constexpr std::uint64_t pages = 16'384;
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = program(shared, pages, [] {
    auto at = [](std::uint64_t page) { return reinterpret_cast<char*>(arena + page * page_bytes); };
    // Given back: zero from now on, whatever is still on the way.
    ::madvise(at(1'000), 500 * page_bytes, MADV_DONTNEED);
    // Unmapped, and mapped anew at the same place.
    ::munmap(at(2'000), 500 * page_bytes);
    map_at(arena + 2'000 * page_bytes, 500 * page_bytes);
    // Moved elsewhere, twice.
    constexpr std::uint64_t elsewhere = arena + (1ull << 36);
    char* moved = static_cast<char*>(::mremap(at(3'000), 500 * page_bytes, 500 * page_bytes,
                                              MREMAP_MAYMOVE | MREMAP_FIXED,
                                              reinterpret_cast<void*>(elsewhere)));
    if (moved == MAP_FAILED) return false;
    moved = static_cast<char*>(::mremap(moved, 500 * page_bytes, 500 * page_bytes,
                                        MREMAP_MAYMOVE | MREMAP_FIXED,
                                        reinterpret_cast<void*>(elsewhere + (1ull << 30))));
    if (moved == MAP_FAILED) return false;
    ::mprotect(at(5'000), 100 * page_bytes, PROT_READ);
    for (std::uint64_t i = 0; i < pages; ++i) {
      std::uint64_t wanted = stamp(i);
      if ((i >= 1'000 && i < 1'500) || (i >= 2'000 && i < 2'500)) wanted = 0;
      if (i >= 3'000 && i < 3'500) {
        if (*reinterpret_cast<std::uint64_t*>(moved + (i - 3'000) * page_bytes + 24) != wanted)
          return false;
        continue;
      }
      if (word(i) != wanted) return false;
    }
    return true;
  });
  Bed bed(source, target, {.track = false});
  postcopy(source, target, shared, 0, bed);
}

// What arrives for a place that was just left must not be taken for arrived.
TEST(Postcopy, PagesThatMoveAllTheTimeArrive) {
  constexpr std::uint64_t pages = 16'384, moving = 64;
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = program(shared, pages, [] {
    constexpr std::uint64_t elsewhere = arena + (1ull << 36);
    // Each is moved to and fro while the push is at it.
    for (std::uint64_t first = 0; first < pages; first += moving) {
      char* here = reinterpret_cast<char*>(arena + first * page_bytes);
      char* there = reinterpret_cast<char*>(elsewhere + first * page_bytes);
      unsigned char resident = 0;
      for (int hop = 0; hop < 1'000 && (resident & 1) == 0; hop += 2) {
        for (int way = 0; way < 2; ++way, std::swap(here, there))
          if (::mremap(here, moving * page_bytes, moving * page_bytes,
                       MREMAP_MAYMOVE | MREMAP_FIXED, there) != there)
            return false;
        if (::mincore(here + (moving - 1) * page_bytes, page_bytes, &resident) != 0) return false;
      }
    }
    return check_all(pages);
  });
  Bed bed(source, target, {.track = false});
  postcopy(source, target, shared, 0, bed);
}

TEST(Postcopy, AChildForkedDuringTheDrainHasEveryPage) {
  constexpr std::uint64_t pages = 16'384;
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = program(shared, pages, [shared] {
    for (int i = 0; i < 3; ++i) {
      const long child = raw_syscall(SYS_fork);
      if (child == 0) {
        const bool good =
            check_at_random(pages, 300, static_cast<std::uint64_t>(i)) && check_all(pages);
        raw_syscall(SYS_exit_group, good ? 7 : 8);
      }
      int status = 0;
      if (raw_syscall(SYS_wait4, child, reinterpret_cast<long>(&status)) != child) return false;
      if (!WIFEXITED(status) || WEXITSTATUS(status) != 7) return false;
      shared->counter = shared->counter + 1;
    }
    return check_all(pages);
  });
  Bed bed(source, target, {.track = false});
  postcopy(source, target, shared, 0, bed);
  EXPECT_EQ(shared->counter, 3u);
}

TEST(Postcopy, AProgramThatExitsDuringTheDrainEndsIt) {
  constexpr std::uint64_t pages = 16'384;
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = program(shared, pages, [shared]() -> bool {
    shared->state = 3;
    raw_syscall(SYS_exit_group, 0);
    return false;
  });
  Bed bed(source, target, {.track = false});
  postcopy(source, target, shared, 0, bed);
}

TEST(Postcopy, ALostSourceLeavesFaultsBlockedAndFillsNothing) {
  constexpr std::uint64_t pages = 4'096;
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = program(shared, pages, [shared] {
    shared->counter = 1;
    const bool good = check_all(pages);
    shared->counter = 2;
    return good;
  });
  await([&] { return shared->state == 1; }, "the program");
  Bed bed(source, target, {.track = false});
  bed.freeze();
  const std::uint64_t stack = source.registers().rsp & ~(page_bytes - 1);
  bed.round(RoundKind::last_postcopy,
            {{.space = bed.space(), .start = stack, .end = stack + 2 * page_bytes}});
  // Nobody serves: the links go down before the first page is asked for.
  ASSERT_TRUE(bed.target_memory().start_pager(bed.urgent().target.get()).ok());
  ::shutdown(bed.urgent().source.get(), SHUT_RDWR);
  for (int fd : bed.source_streams()) ::shutdown(fd, SHUT_RDWR);
  target.set_registers(source.registers());
  target.go();
  shared->command = 1;
  Result<PagerStats> drained = bed.target_memory().wait_drained(99, generous_ms);
  ASSERT_FALSE(drained.ok());
  EXPECT_EQ(drained.error().code(), Errc::peer_lost);
  EXPECT_EQ(bed.target_memory().pager_stats().pages_left, bed.memory().pages_pending());
  // The program may have run up to its first missing page, no further; no verdict, right or wrong.
  EXPECT_EQ(shared->state, 1);
  EXPECT_NE(shared->counter, 2u);
}

}  // namespace
}  // namespace godwit::memory::testing
