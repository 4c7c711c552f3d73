// Scanning the content of one process, as all trackers do it. Internal to memory.
#pragma once

#include "memory/dirty_tracker.h"
#include "sys/pagemap.h"

namespace godwit::memory {

Result<MapsView> read_areas(pid_t pid);

// Where to look for anonymous memory: pieces that scan_all can share among threads.
std::vector<AreaGroup> anonymous_pieces(const MapsView& maps);

// PAGEMAP_SCAN of many ranges, by two threads where there are several; the order stays.
Result<std::vector<sys::PageRegion>> scan_all(int pagemap_fd,
                                              const std::vector<sys::ScanQuery>& queries);

// Adds the anonymous pages that are there, found by looking for holes: half a millisecond a GiB,
// where telling pages that are there costs 3 (the kernel appends page by page). Zero pages count as
// there.
Result<void> scan_present(int pagemap_fd, const MapsView& maps, PageSet& content);

// Adds what of the anonymous areas lies in none of the holes, which ascend.
void add_between_holes(const MapsView& maps, const std::vector<sys::PageRegion>& holes,
                       PageSet& content);

// Content of `harvest`; with `details` zero pages are left out, and huge pages are told. By
// PAGEMAP_SCAN or, on kernels before 6.7, word by word; with `dirty_word` != 0 also the dirty part:
// pages whose pagemap word has this bit.
Result<void> scan_content(pid_t pid, const MapsView& maps, std::uint64_t dirty_word, bool details,
                          Harvest& harvest);

}  // namespace godwit::memory
