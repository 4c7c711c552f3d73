#include "sys/maps_query.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/ids.h"
#include "sys/proc.h"

namespace godwit::sys {
namespace {

TEST(MapsQuery, ARoomyAddressIsFreeAndNextToNothing) {
  constexpr std::uint64_t bytes = 1 << 20;
  Result<std::uint64_t> at = roomy_address(::getpid(), bytes);
  ASSERT_TRUE(at.ok()) << at.error().what();
  EXPECT_EQ(*at % page_bytes, 0u);
  const std::vector<MapEntry> maps = read_maps(::getpid()).value();
  for (const MapEntry& map : maps)
    EXPECT_TRUE(map.end < *at || map.start > *at + bytes) << map.path;
  void* memory = ::mmap(reinterpret_cast<void*>(*at), bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  // Once more, now that it is taken.
  Result<std::uint64_t> next = roomy_address(::getpid(), bytes);
  ASSERT_TRUE(next.ok()) << next.error().what();
  EXPECT_TRUE(*next + bytes < *at || *next > *at + bytes);
  ::munmap(memory, bytes);
}

TEST(MapsQuery, AProcessThatIsGoneIsToldSo) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  Result<std::uint64_t> at = roomy_address(child, 4096);
  ASSERT_FALSE(at.ok());
  EXPECT_EQ(at.error().code(), Errc::tracee_gone);
}

}  // namespace
}  // namespace godwit::sys
