// Rounds between real processes: after the last one every page of the source is in the target.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include "base/ids.h"
#include "memory/dirty_tracker.h"
#include "memory/scan.h"
#include "memory/testbed.h"

namespace godwit::memory::testing {
namespace {

#define NEEDS_UFFD_TRACKING() \
  if (!uffd_tracking_supported()) GTEST_SKIP() << "no PAGEMAP_SCAN or no userfaultfd WP_ASYNC"

void* map(std::size_t bytes, int protection = PROT_READ | PROT_WRITE, int flags = 0,
          std::uint64_t at = 0) {
  void* memory = ::mmap(reinterpret_cast<void*>(at), bytes, protection,
                        MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  INVARIANT(memory != MAP_FAILED, "mmap errno={}", errno);
  return memory;
}

void fill(void* memory, std::size_t bytes, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  auto* words = static_cast<std::uint64_t*>(memory);
  for (std::size_t i = 0; i < bytes / 8; i += 8) words[i] = random();
}

// Writes at random for ever; `state` 1 once everything was touched.
int random_writer(Shared* shared, std::size_t bytes, bool huge) {
  auto* memory = static_cast<unsigned char*>(map(bytes + huge_page_bytes));
  memory += huge_page_bytes - reinterpret_cast<std::uintptr_t>(memory) % huge_page_bytes;
  if (huge) ::madvise(memory, bytes, MADV_HUGEPAGE);
  fill(memory, bytes, 1);
  shared->state = 1;
  std::mt19937_64 random(2);
  while (shared->command == 0) {
    auto* at = reinterpret_cast<std::uint64_t*>(memory + random() % bytes / 8 * 8);
    *at = random();
    shared->counter = shared->counter + 1;
    if (random() % 64 == 0)
      std::memset(memory + random() % (bytes / page_bytes) * page_bytes, 0, page_bytes);
  }
  return 0;
}

void precopy_exactly(std::size_t bytes, bool huge, Bed::Settings settings) {
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = Child::run([=] { return random_writer(shared, bytes, huge); });
  await([&] { return shared->state == 1; }, "the program");
  Bed bed(source, target, settings);
  EXPECT_EQ(bed.arm().kind, TrackerKind::uffd_wp);
  for (int i = 0; i < 4; ++i) {
    bed.prepare();
    const std::uint64_t counter = shared->counter;
    RoundStats stats = bed.round(RoundKind::precopy);
    await([&] { return shared->counter > counter + 1'000; }, "the program to go on");
    EXPECT_TRUE(stats.spaces_gone.empty());
  }
  bed.freeze();
  RoundStats last = bed.round(RoundKind::last);
  EXPECT_GT(last.pages, 0u);
  EXPECT_GT(bed.compare(), bytes / page_bytes / 2);
}

TEST(Rounds, PrecopyOfARandomWriterIsExact) {
  NEEDS_UFFD_TRACKING();
  precopy_exactly(64 << 20, false, {});
}

TEST(Rounds, PrecopyOfHugePagesIsExact) {
  NEEDS_UFFD_TRACKING();
  precopy_exactly(64 << 20, true, {});
}

// The first few land in huge pages, then the same area is filled page by page.
TEST(Rounds, HugePagesThatAreExpensiveOnTheTargetAreCopiedOneByOne) {
  NEEDS_UFFD_TRACKING();
  precopy_exactly(64 << 20, true,
                  {.streams = 2,
                   .copy_uffd = true,
                   .drop = true,
                   .track = true,
                   .layouts = true,
                   .huge_page_us_max = 1});
}

TEST(Rounds, PrecopyWithoutAnyHelpOnTheTargetIsExact) {
  NEEDS_UFFD_TRACKING();
  precopy_exactly(
      32 << 20, false,
      {.streams = 1, .copy_uffd = false, .drop = false, .track = true, .layouts = true});
}

TEST(Rounds, AnIdleProgramsSecondRoundSendsNothing) {
  NEEDS_UFFD_TRACKING();
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = Child::run([=] {
    fill(map(8 << 20), 8 << 20, 3);
    shared->state = 1;
    while (true) ::pause();
    return 0;
  });
  await([&] { return shared->state == 1; }, "the program");
  Bed bed(source, target);
  bed.arm();
  bed.prepare();
  EXPECT_GE(bed.round(RoundKind::precopy).pages, 2'048u);
#ifdef __SANITIZE_ADDRESS__
  constexpr std::uint64_t idle_pages_max = 1'024;  // Shadow memory, too.
#else
  constexpr std::uint64_t idle_pages_max = 16;  // Its stack, at most.
#endif
  EXPECT_LE(bed.memory().estimate_dirty().value().pages, idle_pages_max);
  EXPECT_LE(bed.round(RoundKind::precopy).pages, idle_pages_max);
}

TEST(Rounds, StopAndCopyIsExactWithAnyNumberOfStreams) {
  for (int streams : {1, 2, 4}) {
    Shared* shared = make_shared_page();
    Child target = Child::skeleton();
    Child source = Child::run([=] { return random_writer(shared, 16 << 20, false); });
    await([&] { return shared->state == 1; }, "the program");
    Bed bed(source, target, {.streams = streams, .track = false});
    bed.freeze();
    RoundStats stats = bed.round(RoundKind::last);
    EXPECT_GE(stats.pages, 3'000u);
    EXPECT_GT(bed.compare(), 4'000u);
  }
}

// Everything a program may do to its mappings, at random, while rounds go on.
int mapper(Shared* shared, std::uint64_t seed) {
  constexpr std::uint64_t base = 0x551000000000, slot_bytes = 4 << 20;
  constexpr int slots = 24;
  struct Slot {
    std::uint64_t bytes = 0;
    int protection = PROT_READ | PROT_WRITE;
  } slot[slots];
  std::mt19937_64 random(seed);
  auto at = [](int i) { return base + static_cast<std::uint64_t>(i) * slot_bytes; };
  for (std::uint64_t step = 0; shared->command == 0; ++step) {
    const int i = static_cast<int>(random() % slots);
    void* p = reinterpret_cast<void*>(at(i));
    Slot& s = slot[i];
    const std::uint64_t pages = s.bytes / page_bytes;
    switch (random() % 12) {
      case 0:
        if (s.bytes != 0) break;
        s.bytes = (1 + random() % 256) * page_bytes;
        s.protection = PROT_READ | PROT_WRITE;
        map(s.bytes, s.protection, MAP_FIXED, at(i));
        fill(p, s.bytes, random());
        break;
      case 1:
        if (s.bytes == 0) break;
        ::munmap(p, s.bytes);
        s.bytes = 0;
        break;
      case 2:  // Replaced at the same place, same size: nothing in maps tells.
        if (s.bytes == 0) break;
        s.protection = PROT_READ | PROT_WRITE;
        map(s.bytes, s.protection, MAP_FIXED, at(i));
        if (random() % 2 == 0) fill(p, s.bytes / 2, random());
        break;
      case 3: {  // Moved to another slot.
        const int to = static_cast<int>(random() % slots);
        if (s.bytes == 0 || slot[to].bytes != 0 || to == i) break;
        if (::mremap(p, s.bytes, s.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at(to)) == MAP_FAILED) {
          // Tracked areas don't merge with what was mapped beside them since, and mremap takes one.
          shared->refused = shared->refused + 1;
          break;
        }
        slot[to] = s;
        s.bytes = 0;
        break;
      }
      case 4:  // Grows or shrinks where it is.
        if (s.bytes == 0) break;
        {
          const std::uint64_t bytes = (1 + random() % 512) * page_bytes;
          if (::mremap(p, s.bytes, bytes, 0) != MAP_FAILED) s.bytes = bytes;
        }
        break;
      case 5:
        if (s.bytes == 0) break;
        ::madvise(static_cast<char*>(p) + random() % pages * page_bytes, page_bytes, MADV_DONTNEED);
        break;
      case 6:
        if (s.bytes == 0) break;
        s.protection = random() % 3 == 0   ? PROT_NONE
                       : random() % 2 == 0 ? PROT_READ
                                           : PROT_READ | PROT_WRITE;
        ::mprotect(p, s.bytes, s.protection);
        break;
      default:
        if (s.bytes == 0 || s.protection != (PROT_READ | PROT_WRITE)) break;
        for (int writes = 0; writes < 8; ++writes)
          *reinterpret_cast<std::uint64_t*>(at(i) + random() % pages * page_bytes) = random();
    }
    if (step > 2'000) shared->state = 1;
    shared->counter = shared->counter + 1;
  }
  return 0;
}

TEST(Rounds, ChangesOfMappingsBetweenAndDuringRoundsAreExact) {
  NEEDS_UFFD_TRACKING();
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Shared* shared = make_shared_page();
    Child target = Child::skeleton();
    Child source = Child::run([=] { return mapper(shared, seed); });
    await([&] { return shared->state == 1; }, "the program");
    Bed bed(source, target, {.drop = seed % 3 != 0});
    bed.arm();
    for (int i = 0; i < 5; ++i) {
      bed.prepare();
      bed.round(RoundKind::precopy);
      const std::uint64_t counter = shared->counter;
      await([&] { return shared->counter > counter + 300; }, "the program to go on");
    }
    bed.freeze();
    bed.round(RoundKind::last);
    bed.compare();
    EXPECT_EQ(shared->refused, 0u);
    if (HasFailure()) return;
  }
}

TEST(Rounds, ProtNoneAndReadOnlyPagesWithDataTravel) {
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = Child::run([=] {
    for (int protection : {PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC}) {
      void* memory = map(3 << 20);
      map(page_bytes, PROT_READ | PROT_WRITE | PROT_EXEC);  // Keeps them apart.
      fill(memory, 3 << 20, static_cast<std::uint64_t>(protection) + 9);
      ::mprotect(memory, 3 << 20, protection);
    }
    shared->state = 1;
    while (true) ::pause();
    return 0;
  });
  await([&] { return shared->state == 1; }, "the program");
  Bed bed(source, target, {.track = false});
  bed.freeze();
  EXPECT_GE(bed.round(RoundKind::last).pages, 3'072u);
  EXPECT_GE(bed.compare(), 3'072u);
}

TEST(Rounds, ASparseReservationCostsNothing) {
  NEEDS_UFFD_TRACKING();
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = Child::run([=] {
    constexpr std::size_t reserved = 100ull << 30;
    auto* memory = static_cast<char*>(map(reserved, PROT_READ | PROT_WRITE, MAP_NORESERVE));
    for (std::size_t i = 0; i < 10; ++i) memory[i * (reserved / 10) + 5] = 'x';
    shared->state = 1;
    while (true) ::pause();
    return 0;
  });
  await([&] { return shared->state == 1; }, "the program");
  Bed bed(source, target);
  bed.arm();
  bed.prepare();
  RoundStats first = bed.round(RoundKind::precopy);
  EXPECT_LT(first.pages, 100'000u);  // What the test itself holds, not 26 million.
  bed.freeze();
  RoundStats last = bed.round(RoundKind::last);
  EXPECT_LT(last.harvest_us, 1'000'000);
  EXPECT_LT(bed.compare(), 100'000u);
}

TEST(Rounds, TheHeapMayGrowAndShrinkBetweenRounds) {
  NEEDS_UFFD_TRACKING();
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = Child::run([=] {
    int done = 0;
    shared->state = 1;
    while (true) {
      if (shared->command == done) continue;
      done = shared->command;
      if (done % 3 == 0) {
        ::sbrk(-(1 << 20));
      } else {
        void* more = ::sbrk(1 << 20);
        fill(more, 1 << 20, static_cast<std::uint64_t>(done));
      }
      shared->state = 1 + done;
    }
    return 0;
  });
  await([&] { return shared->state == 1; }, "the program");
  Bed bed(source, target);
  bed.arm();
  for (int i = 1; i <= 7; ++i) {
    bed.prepare();
    bed.round(RoundKind::precopy);
    shared->command = i;
    await([&] { return shared->state == 1 + i; }, "the heap to change");
  }
  bed.freeze();
  bed.round(RoundKind::last);
  EXPECT_GT(bed.compare(), 500u);
}

TEST(Rounds, ForkInTheMiddleLeavesTheParentExact) {
  NEEDS_UFFD_TRACKING();
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = Child::run([=] {
    auto* memory = static_cast<char*>(map(4 << 20));
    fill(memory, 4 << 20, 5);
    shared->state = 1;
    for (std::uint64_t i = 0; shared->command == 0; ++i) {
      const long child = raw_syscall(SYS_fork);
      if (child == 0) {
        memory[i * page_bytes % (4 << 20)] = 'c';  // The child's own copy.
        raw_syscall(SYS_exit_group, 0);
      }
      memory[(i * 7 + 3) * page_bytes % (4 << 20)] = static_cast<char>(i);
      raw_syscall(SYS_wait4, child);
      shared->counter = i + 1;
    }
    return 0;
  });
  await([&] { return shared->state == 1; }, "the program");
  Bed bed(source, target);
  bed.arm();
  for (int i = 0; i < 4; ++i) {
    bed.prepare();
    bed.round(RoundKind::precopy);
    const std::uint64_t counter = shared->counter;
    await([&] { return shared->counter > counter + 50; }, "forks");
  }
  bed.freeze();
  bed.round(RoundKind::last);
  EXPECT_GT(bed.compare(), 1'000u);
}

TEST(Rounds, ExecInTheMiddleIsNoticed) {
  NEEDS_UFFD_TRACKING();
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = Child::run([=] {
    fill(map(4 << 20), 4 << 20, 5);
    shared->state = 1;
    while (shared->command == 0) {
    }
    ::execl("/bin/sleep", "sleep", "1000", nullptr);
    return 1;
  });
  await([&] { return shared->state == 1; }, "the program");
  Bed bed(source, target);
  bed.arm();
  bed.prepare();
  bed.round(RoundKind::precopy);
  shared->command = 1;
  await(
      [&] {
        char path[64] = {};
        const auto n = ::readlink(fmt::format("/proc/{}/exe", source.pid()).c_str(), path, 63);
        return n > 0 && std::string(path).ends_with("sleep");
      },
      "execve");
  // The same pid, another program: all of its pages are new, all old ones are gone.
  await([&] { return bed.memory().estimate_dirty().value().pages > 10; }, "its pages");
  bed.memory().set_target_layout(bed.space(), {});
  const RoundStats stats = bed.round(RoundKind::precopy);
  EXPECT_GE(stats.pages_held_back, 10u);
  EXPECT_EQ(stats.pages, 0u);
}

TEST(Rounds, AProcessThatEndsLeavesTheRound) {
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = Child::run([=] {
    fill(map(1 << 20), 1 << 20, 5);
    shared->state = 1;
    while (shared->command == 0) {
    }
    return 0;
  });
  await([&] { return shared->state == 1; }, "the program");
  Bed bed(source, target);
  bed.arm();
  bed.prepare();
  bed.round(RoundKind::precopy);
  shared->command = 1;
  await([&] { return !read_areas(source.pid()).ok(); }, "its end");
  RoundStats stats = bed.round(RoundKind::precopy);
  EXPECT_EQ(stats.spaces_gone, std::vector<SpaceId>{bed.space()});
  EXPECT_FALSE(bed.memory().has_space(bed.space()));
}

TEST(Rounds, PagesOutsideOfTheTargetsLayoutAreHeldBack) {
  NEEDS_UFFD_TRACKING();
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = Child::run([=] {
    shared->state = 1;
    while (shared->command == 0) {
    }
    fill(map(1 << 20, PROT_READ | PROT_WRITE, MAP_FIXED, 0x552000000000), 1 << 20, 4);
    shared->state = 2;
    while (true) ::pause();
    return 0;
  });
  await([&] { return shared->state == 1; }, "the program");
  Bed bed(source, target);
  bed.arm();
  bed.prepare();
  bed.round(RoundKind::precopy);
  shared->command = 1;
  await([&] { return shared->state == 2; }, "a new mapping");
  EXPECT_EQ(bed.round(RoundKind::precopy).pages_held_back, 256u);
  bed.freeze();
  EXPECT_GE(bed.round(RoundKind::last).pages, 256u);
  bed.compare();
}

TEST(Rounds, ALostPeerEndsASendAtOnce) {
  Shared* shared = make_shared_page();
  Child target = Child::skeleton();
  Child source = Child::run([=] { return random_writer(shared, 16 << 20, false); });
  await([&] { return shared->state == 1; }, "the program");
  Bed bed(source, target);
  ::shutdown(bed.stream(1).target.get(), SHUT_RDWR);
  const std::vector<int> streams = bed.source_streams();
  Result<RoundStats> stats = bed.memory().send_round(
      streams,
      {.round = 1, .kind = RoundKind::precopy, .ack_timeout_ms = generous_ms, .eager = {}});
  ASSERT_FALSE(stats.ok());
  EXPECT_EQ(stats.error().code(), Errc::peer_lost) << stats.error().what();
}

}  // namespace

long raw_syscall(long nr, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

}  // namespace godwit::memory::testing
