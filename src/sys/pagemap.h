// /proc/PID/pagemap: which pages are there, and which were written (PAGEMAP_SCAN, from 6.7).
//
// The ioctl walks page tables, tells categories of runs of pages, and in the same step
// write-protects those it found written: asking and re-arming are atomic per page. Facts:
//   - WRITTEN means "not write-protected by a userfaultfd", so also what was never armed.
//   - WPALLOWED tells whether the page's mapping is registered with an asynchronous userfaultfd;
//     with PM_SCAN_WP_MATCHING alone other mappings are skipped silently, with
//     PM_SCAN_CHECK_WPASYNC the call fails with EPERM at the first of them.
//   - Asking for FILE costs a look at every page's descriptor.
//   - The descriptor is bound to the address space at open(2): after execve(2) it scans a dead
//     one and finds nothing, successfully. Open it anew for each harvest.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace godwit::sys {

inline constexpr std::uint64_t page_wpallowed = 1 << 0;
inline constexpr std::uint64_t page_written = 1 << 1;
inline constexpr std::uint64_t page_file = 1 << 2;
inline constexpr std::uint64_t page_present = 1 << 3;
inline constexpr std::uint64_t page_swapped = 1 << 4;
inline constexpr std::uint64_t page_pfnzero = 1 << 5;
inline constexpr std::uint64_t page_huge = 1 << 6;
inline constexpr std::uint64_t page_guard =
    1 << 8;  // MADV_GUARD_INSTALL; see pagemap_guard_supported.

struct PageRegion {  // struct page_region of the kernel
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t categories;
};

struct ScanQuery {
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  // A page matches if it has all categories of `required`, none of `inverted`, and (if not 0) one
  // of `any_of`. A category that is in both of the last two counts as one of `any_of` where the
  // page doesn't have it.
  std::uint64_t required = 0;
  std::uint64_t inverted = 0;
  std::uint64_t any_of = 0;
  std::uint64_t returned = 0;     // Categories that split runs and are told.
  bool write_protect = false;     // PM_SCAN_WP_MATCHING
  bool check_registered = false;  // PM_SCAN_CHECK_WPASYNC
};

Result<UniqueFd> open_pagemap(pid_t pid);

// Appends to `out`. The error's sys_errno is EPERM where a mapping isn't registered
// (check_registered), ENOTTY where the kernel has no such call.
Result<void> pagemap_scan(int pagemap_fd, const ScanQuery& query, std::vector<PageRegion>& out);
bool pagemap_scan_supported();
// Whether PAGEMAP_SCAN tells guard pages, which look like swapped-out ones else.
bool pagemap_guard_supported();

// The classic interface, a word per page, for kernels before 6.7.
inline constexpr std::uint64_t pagemap_present = 1ull << 63;
inline constexpr std::uint64_t pagemap_swapped = 1ull << 62;
inline constexpr std::uint64_t pagemap_file = 1ull << 61;
inline constexpr std::uint64_t pagemap_soft_dirty = 1ull << 55;
inline constexpr std::uint64_t pagemap_frame_mask = (1ull << 55) - 1;
Result<void> pagemap_read(int pagemap_fd, std::uint64_t first_page, std::span<std::uint64_t> out);

// clear_refs 4: from now on soft-dirty means written since.
Result<void> clear_soft_dirty(pid_t pid);
// By trying: a kernel without it (CONFIG_MEM_SOFT_DIRTY) takes the request and does nothing.
bool soft_dirty_supported();

}  // namespace godwit::sys
