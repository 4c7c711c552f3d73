// Which pages of a process hold content, and which of them were written since last asked.
//
// One interface, chosen at run time (design of the choice: SourceMemory::arm):
//
// uffd-wp (kernels from 6.7). A userfaultfd made inside the process registers its private areas for
// asynchronous write protection; PAGEMAP_SCAN asks and re-arms in one step. Measured on 6.18, CPU
// time for 1 GiB of 4K pages: first arm 12 ms; pages written since 0.27 ms (0.5 ms where holes must
// not match, since they would be armed); holes 0.5 ms; telling every page that is there 3 ms, so
// that is only done once. A first write after arming costs the program 0.7 to 1 us, in a huge page
// 16 us (it splits).
// What it can miss, and what is done about it:
//   - an area that came after arming (mmap, brk, mremap), also at the place of an old one, isn't
//     registered: PAGE_IS_WPALLOWED tells, it counts as wholly dirty, and is registered. A page's
//     own bit is not believed there: until 6.13 mremap carried stale bits along.
//   - execve replaces the address space silently: pagemap is opened anew for each harvest, so
//     nothing there is registered.
//   - an area whose registration is refused (the program has a userfaultfd of its own there, ...)
//     is wholly dirty each time.
//   - a page of a private file mapping that was copied, armed and then given back by
//     MADV_DONTNEED leaves a marker that looks like a swapped-out, unwritten page: swapped pages of
//     file mappings count as dirty each time.
//   - registered areas don't merge with new neighbours: near vm.max_map_count tracking ends.
//   - memory shared with others isn't its business: that goes through files (file_content.h).
//
// soft-dirty (CONFIG_MEM_SOFT_DIRTY). Reading and clearing are two steps, and what is written
// between them would be lost: so the process is paused for them.
//
// none: everything is dirty, always.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "memory/areas.h"
#include "memory/page_set.h"
#include "memory/types.h"

namespace godwit::memory {

struct Harvest {
  PageSet content;  // The process's own pages: private anonymous, or copied from a file mapping.
  PageSet dirty;    // The part that was written since the last harvest, or may have been.
  PageSet huge;     // The part of `content` that lies in huge pages.
  std::vector<Area> areas;
};

enum class HarvestMode {
  take,    // What is told now isn't told again until it is written again.
  look,    // Changes nothing. For the last round of a frozen process.
  glance,  // As look, without telling zero pages and huge pages apart: cheaper.
};

class DirtyTracker {
 public:
  virtual ~DirtyTracker() = default;
  virtual TrackerKind kind() const = 0;
  // True once it can't tell anything any more (execve, too many mappings): everything is dirty from
  // then on; a new tracker may be made.
  virtual bool lost(std::string* reason) const = 0;
  // Errc::tracee_gone when the process is no more. `known`: its mappings, where the caller knows
  // them (it stands still); else they are read.
  virtual Result<Harvest> harvest(HarvestMode mode, std::optional<MapsView> known) = 0;
  Result<Harvest> harvest(HarvestMode mode) { return harvest(mode, std::nullopt); }
};

// Stops (true) and continues (false) the process for a moment.
using Pause = std::function<Result<void>(bool stop)>;

// Mappings that must stay possible beside those there are, else the program might fail to map.
inline constexpr std::uint64_t map_count_margin = 2'048;
Result<std::uint64_t> map_count_max();  // vm.max_map_count

// `uffd`: raw, of this process. Errc::unsupported with the reason where it can't be done.
Result<std::unique_ptr<DirtyTracker>> make_uffd_tracker(pid_t pid, UniqueFd uffd);
Result<std::unique_ptr<DirtyTracker>> make_soft_dirty_tracker(pid_t pid, Pause pause);
std::unique_ptr<DirtyTracker> make_no_tracker(pid_t pid);

// PAGEMAP_SCAN with write protection and the userfaultfd features for it.
bool uffd_tracking_supported();

}  // namespace godwit::memory
