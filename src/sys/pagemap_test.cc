#include "sys/pagemap.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/ids.h"

namespace godwit::sys {
namespace {

TEST(PagemapScan, TellsEachOfManyRegionsOnce) {
  if (!pagemap_scan_supported()) GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN";
  constexpr std::size_t regions = 2000, bytes = 2 * regions * page_bytes;
  void* memory =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  ASSERT_EQ(::madvise(memory, bytes, MADV_NOHUGEPAGE), 0);
  for (std::size_t i = 0; i < regions; ++i) static_cast<char*>(memory)[2 * i * page_bytes] = 1;
  Result<UniqueFd> pagemap = open_pagemap(::getpid());
  ASSERT_TRUE(pagemap.ok()) << pagemap.error().what();
  const auto start = reinterpret_cast<std::uint64_t>(memory);
  std::vector<PageRegion> found;
  Result<void> scanned = pagemap_scan(pagemap->get(),
                                      {.start = start,
                                       .end = start + bytes,
                                       .required = page_present,
                                       .returned = page_present},
                                      found);
  ASSERT_TRUE(scanned.ok()) << scanned.error().what();
  ASSERT_EQ(found.size(), regions);
  for (std::size_t i = 0; i < regions; ++i) {
    ASSERT_EQ(found[i].start, start + 2 * i * page_bytes);
    ASSERT_EQ(found[i].end, found[i].start + page_bytes);
  }
  ::munmap(memory, bytes);
}

}  // namespace
}  // namespace godwit::sys
