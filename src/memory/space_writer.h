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
// A run with the flag `huge` turns a copy area into a write area, unless fresh huge pages are
// expensive: where the host of a virtual machine takes free memory back, the kernel's zeroing of
// one takes 4 to 10 ms instead of 0.1 (1 GiB: 2 to 5 s of CPU instead of 50 ms; copying 4K pages
// takes 0.2). HugePageCost learns that from the first ones; the kernel's khugepaged makes huge
// pages of them again.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <vector>

#include "memory/target_memory.h"
#include "memory/types.h"

namespace godwit::memory {

struct ArrivedRun {
  PageRun run;
  const std::byte* data = nullptr;
};

// What the first touch of a huge page costs here. Shared by all writers of a migration.
class HugePageCost {
 public:
  // Three times what the same pages cost one by one.
  static constexpr std::int64_t us_max_default = 1'500;
  explicit HugePageCost(std::int64_t us_max) : us_max_(us_max) {}

  void note(std::int64_t cpu_us, std::uint64_t pages);
  bool too_high() const { return too_high_.load(std::memory_order_relaxed); }

 private:
  static constexpr int in_a_row = 4;  // One may be an accident.

  const std::int64_t us_max_;
  std::atomic<int> expensive_{0};
  std::atomic<bool> too_high_{false};
};

class SpaceWriter {
 public:
  SpaceWriter(SpaceId space, SpaceTarget target, bool first_round, HugePageCost& huge_page_cost);

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
  Result<void> write_pages(std::span<const ArrivedRun> runs);
  Result<void> write_measured(std::span<const ArrivedRun> runs);
  void turn_to_copying();
  Result<Way> way_for(std::size_t area, bool huge);
  Result<std::uint64_t> copy(const PageRun& run, const std::byte* data);
  Result<void> write_plain(std::span<const ArrivedRun> runs);
  Result<void> force(const PageRun& run, const std::byte* data);

  SpaceId space_;
  SpaceTarget target_;
  std::atomic<bool> may_copy_;
  HugePageCost& huge_page_cost_;
  // Exclusive: an area that others write by process_vm_writev is being registered. One of them
  // would wait for ever at an absent page.
  std::shared_mutex turning_;
  bool turned_ = false;
  std::vector<std::unique_ptr<AreaState>> states_;  // As target_.areas.
};

}  // namespace godwit::memory
