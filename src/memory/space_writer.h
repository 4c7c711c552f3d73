// Where the frames of one space land.
//
// A fresh 4K page is the target's bottleneck (1.2 to 1.4 us by an ordinary fault), so an area is
// filled in one of these ways, decided by the first frame that comes for it:
//   copy   UFFDIO_COPY into an area registered for missing pages: 4.7 to 4.9 GiB/s on fresh 4K
//          pages, where process_vm_writev does 2.9. First round only, areas of some size only:
//          a registered area doesn't merge with its neighbours.
//   write  process_vm_writev: fresh huge pages (6 to 8 GiB/s; a registered area never gets one),
//          and pages that are there already.
//   force  /proc/PID/mem: read-only and PROT_NONE mappings, which the former refuses.
// A run with the flag `huge` turns a copy area into a write area.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "memory/target_memory.h"
#include "memory/types.h"

namespace godwit::memory {

struct ArrivedRun {
  PageRun run;
  const std::byte* data = nullptr;
};

class SpaceWriter {
 public:
  SpaceWriter(SpaceId space, SpaceTarget target, bool first_round);

  // Several threads at once, for disjoint pages.
  Result<void> write(std::span<const ArrivedRun> runs);
  // Reads as zero again (files: a hole). For processes only where there is no better way.
  Result<void> zero(const PageRun& run);
  // From here on nothing is registered.
  Result<void> end_first_round();

  SpaceId space() const { return space_; }
  const SpaceTarget& target() const { return target_; }
  bool is_file() const { return target_.file_fd >= 0; }

 private:
  enum class Way : int { undecided, copy, write };
  struct AreaState {
    std::atomic<Way> way{Way::undecided};
    std::mutex change;
  };

  Result<void> write_file(const PageRun& run, const std::byte* data);
  Result<Way> way_for(std::size_t area, bool huge);
  Result<std::uint64_t> copy(const PageRun& run, const std::byte* data);
  Result<void> write_plain(std::span<const ArrivedRun> runs);
  Result<void> force(const PageRun& run, const std::byte* data);

  SpaceId space_;
  SpaceTarget target_;
  std::atomic<bool> may_copy_;
  std::vector<std::unique_ptr<AreaState>> states_;  // As target_.areas.
};

}  // namespace godwit::memory
