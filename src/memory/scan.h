// Scanning the content of one process, as all trackers do it. Internal to memory.
#pragma once

#include "memory/dirty_tracker.h"

namespace godwit::memory {

Result<MapsView> read_areas(pid_t pid);

// Content and huge of `harvest`, by PAGEMAP_SCAN or, on kernels before 6.7, word by word; with
// `dirty_word` != 0 also the dirty part: pages whose pagemap word has this bit.
Result<void> scan_content(pid_t pid, const MapsView& maps, std::uint64_t dirty_word,
                          Harvest& harvest);

}  // namespace godwit::memory
