// Asynchronous write protection; dirty_tracker.h tells the facts.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/ids.h"
#include "base/io.h"
#include "base/log.h"
#include "memory/scan.h"
#include "sys/pagemap.h"
#include "sys/userfaultfd.h"

namespace godwit::memory {
namespace {

constexpr std::uint64_t wanted_features =
    sys::uffd_feature_wp_async | sys::uffd_feature_wp_unpopulated;

std::uint64_t no_content(bool anonymous) {
  // Anonymous areas have no file pages; asking would look at every page's descriptor.
  return sys::page_pfnzero | (anonymous ? 0 : sys::page_file);
}

// Does mremap(2) leave the bits of moved pages behind? Not before 6.13 and its stable fixes: the
// new place then looks unwritten. Tried on a page of our own.
bool mremap_clears_bits() {
  static const bool clears = [] {
    auto probe = [](void* from, void* to) -> Result<bool> {
      *static_cast<volatile char*>(from) = 1;
      const auto old_place = reinterpret_cast<std::uint64_t>(from);
      const auto new_place = reinterpret_cast<std::uint64_t>(to);
      UniqueFd uffd = TRY(sys::uffd_create(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
      TRY(sys::uffd_api(uffd.get(), wanted_features));
      TRY(sys::uffd_register(uffd.get(), old_place, old_place + page_bytes,
                             sys::UffdMode::write_protect));
      UniqueFd pagemap = TRY(sys::open_pagemap(::getpid()));
      std::vector<sys::PageRegion> regions;
      TRY(sys::pagemap_scan(pagemap.get(),
                            {.start = old_place,
                             .end = old_place + page_bytes,
                             .required = 0,
                             .inverted = 0,
                             .any_of = 0,
                             .returned = sys::page_written,
                             .write_protect = true,
                             .check_registered = false},
                            regions));
      if (::mremap(from, page_bytes, page_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
        return os_error("mremap");
      regions.clear();
      TRY(sys::pagemap_scan(pagemap.get(),
                            {.start = new_place,
                             .end = new_place + page_bytes,
                             .required = sys::page_written,
                             .inverted = 0,
                             .any_of = 0,
                             .returned = sys::page_written,
                             .write_protect = false,
                             .check_registered = false},
                            regions));
      return !regions.empty();
    };
    void* pages =
        ::mmap(nullptr, 2 * page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return false;
    Result<bool> answer = probe(pages, static_cast<char*>(pages) + page_bytes);
    ::munmap(pages, 2 * page_bytes);
    return answer.ok() && *answer;
  }();
  return clears;
}

class UffdTracker final : public DirtyTracker {
 public:
  UffdTracker(pid_t pid, UniqueFd uffd) : pid_(pid), uffd_(std::move(uffd)) {}

  TrackerKind kind() const override { return TrackerKind::uffd_wp; }

  bool lost(std::string* reason) const override {
    if (lost_.empty()) return false;
    if (reason != nullptr) *reason = lost_;
    return true;
  }

  Result<void> arm() {
    MapsView maps = TRY(read_areas(pid_));
    TRY(check_margin(maps));
    for (const AreaGroup& group : group_areas(maps)) register_group(maps, group);
    return {};
  }

  Result<Harvest> harvest(HarvestMode mode, std::optional<MapsView> known) override {
    MapsView maps = known ? std::move(*known) : TRY(read_areas(pid_));
    UniqueFd pagemap = TRY(sys::open_pagemap(pid_));
    Harvest out;
    if (mode == HarvestMode::take && lost_.empty()) {
      if (Result<void> margin = check_margin(maps); !margin.ok()) {
        // Closing disarms: mappings merge again, and from here everything is dirty.
        lost_ = margin.error().what();
        uffd_.reset();
      }
    }
    if (!lost_.empty()) {
      TRY(scan_content(pid_, maps, 0, mode != HarvestMode::glance, out));
      out.dirty = out.content;
    } else {
      const std::vector<AreaGroup> groups = group_areas(maps);
      TRY(mode == HarvestMode::take ? take_anonymous(pagemap.get(), maps, groups, out)
                                    : look_at_anonymous(pagemap.get(), maps, out));
      for (const AreaGroup& group : groups)
        if (!group.anonymous) TRY(scan_file_group(pagemap.get(), maps, group, mode, out));
    }
    out.areas = std::move(maps.content);
    return out;
  }

 private:
  Result<void> check_margin(const MapsView& maps) {
    const std::uint64_t limit = TRY(map_count_max());
    if (maps.mappings + map_count_margin > limit)
      return make_error(Errc::unsupported,
                        "{} mappings are too near to vm.max_map_count={} for tracking",
                        maps.mappings, limit);
    return {};
  }

  // All areas of the group at once, with the gaps behind them: an area that grows just now would
  // else be split, and mremap(2) refuses to span the halves. Where one refuses, one by one. Those
  // that refuse stay unregistered, which each harvest sees.
  void register_group(const MapsView& maps, const AreaGroup& group) {
    if (sys::uffd_register(uffd_.get(), group.start, group.ceiling, sys::UffdMode::write_protect)
            .ok())
      return;
    auto first =
        std::lower_bound(maps.content.begin(), maps.content.end(), group.start,
                         [](const Area& area, std::uint64_t start) { return area.start < start; });
    for (auto it = first; it != maps.content.end() && it->end <= group.end; ++it)
      (void)try_register(it->start, it->end);
  }

  bool try_register(std::uint64_t start, std::uint64_t end) {
    Result<void> done = sys::uffd_register(uffd_.get(), start, end, sys::UffdMode::write_protect);
    if (!done.ok() && log_enabled(LogLevel::debug))
      LOG(debug, "pid {}: not tracked, so always dirty: {}", pid_, done.error().what());
    return done.ok();
  }

  sys::ScanQuery query(std::uint64_t start, std::uint64_t end, bool anonymous) const {
    return {.start = start,
            .end = end,
            .required = 0,
            .inverted = no_content(anonymous),
            .any_of = sys::page_present | sys::page_swapped,
            .returned = sys::page_wpallowed | sys::page_written | sys::page_huge |
                        (anonymous ? 0 : sys::page_swapped),
            .write_protect = false,
            .check_registered = false};
  }

  static void add(const std::vector<sys::PageRegion>& regions, bool all_dirty, bool anonymous,
                  Harvest& out) {
    for (const sys::PageRegion& region : regions) {
      const std::uint64_t page = region.start / page_bytes;
      const std::uint64_t pages = (region.end - region.start) / page_bytes;
      out.content.add(page, pages);
      const bool untracked = (region.categories & sys::page_wpallowed) == 0;
      const bool marker = !anonymous && (region.categories & sys::page_swapped) != 0;
      if (all_dirty || untracked || marker || (region.categories & sys::page_written) != 0)
        out.dirty.add(page, pages);
      if ((region.categories & sys::page_huge) != 0) out.huge.add(page, pages);
    }
  }

  // In the freeze every walk over the page tables counts: one that matches what was written, what
  // isn't there and what isn't tracked tells all, by few regions.
  Result<void> look_at_anonymous(int pagemap, const MapsView& maps, Harvest& out) const {
    std::vector<sys::ScanQuery> queries;
    for (const AreaGroup& piece : anonymous_pieces(maps)) {
      constexpr std::uint64_t absent = sys::page_present, untracked = sys::page_wpallowed;
      queries.push_back({.start = piece.start,
                         .end = piece.end,
                         .required = 0,
                         .inverted = absent | untracked,
                         .any_of = sys::page_written | absent | untracked,
                         .returned = sys::page_written | sys::page_present | sys::page_swapped |
                                     sys::page_wpallowed,
                         .write_protect = false,
                         .check_registered = false});
    }
    std::vector<sys::PageRegion> holes;
    for (const sys::PageRegion& region : TRY(scan_all(pagemap, queries))) {
      const bool tracked = (region.categories & sys::page_wpallowed) != 0;
      if ((region.categories & (sys::page_present | sys::page_swapped)) == 0)
        holes.push_back(region);
      else if (!tracked || (region.categories & sys::page_written) != 0)
        out.dirty.add(region.start / page_bytes, (region.end - region.start) / page_bytes);
    }
    add_between_holes(maps, holes, out.content);
    out.dirty.keep_only(out.content);  // Pieces also span what lies between anonymous areas.
    return {};
  }

  // Of all anonymous areas: what was written where we are registered (others are skipped without
  // a word; CHECK_WPASYNC would stop at them, having cleared bits before them that are then told
  // to nobody); what is there where we aren't (the kernel skips registered areas as a whole); and
  // what is there at all.
  Result<void> take_anonymous(int pagemap, const MapsView& maps,
                              const std::vector<AreaGroup>& groups, Harvest& out) {
    std::vector<sys::ScanQuery> written, others;
    for (const AreaGroup& piece : anonymous_pieces(maps)) {
      sys::ScanQuery ours = query(piece.start, piece.end, true);
      ours.write_protect = true;
      if (harvested_) {
        // Also zero pages: one may stand where content was.
        ours.inverted = 0;
        ours.required = sys::page_written;
      }
      written.push_back(ours);
      sys::ScanQuery unregistered = query(piece.start, piece.end, true);
      unregistered.inverted |= sys::page_wpallowed;
      others.push_back(unregistered);
    }
    for (const sys::PageRegion& region : TRY(scan_all(pagemap, written))) {
      const std::uint64_t page = region.start / page_bytes;
      const std::uint64_t pages = (region.end - region.start) / page_bytes;
      if ((region.categories & sys::page_written) != 0) out.dirty.add(page, pages);
      if ((region.categories & sys::page_huge) != 0) out.huge.add(page, pages);
      if (!harvested_) out.content.add(page, pages);
    }
    const std::vector<sys::PageRegion> strangers = TRY(scan_all(pagemap, others));
    add(strangers, true, true, out);
    if (harvested_) TRY(scan_present(pagemap, maps, out.content));
    harvested_ = true;
    auto first = strangers.begin();
    for (const AreaGroup& group : groups) {
      if (!group.anonymous) continue;
      auto last = first;
      while (last != strangers.end() && last->start < group.end) ++last;
      TRY(take_newcomers(pagemap, maps, group, {first, last}, out));
      first = last;
    }
    return {};
  }

  // Private file mappings, page by page: few of their pages are the process's own.
  Result<void> scan_file_group(int pagemap, const MapsView& maps, const AreaGroup& group,
                               HarvestMode mode, Harvest& out) {
    std::vector<sys::PageRegion> regions;
    sys::ScanQuery registered = query(group.start, group.end, false);
    registered.write_protect = mode == HarvestMode::take;
    TRY(sys::pagemap_scan(pagemap, registered, regions));
    add(regions, false, false, out);
    if (mode != HarvestMode::take) return {};  // That told unregistered areas, too.

    regions.clear();
    sys::ScanQuery others = query(group.start, group.end, false);
    others.inverted |= sys::page_wpallowed;
    TRY(sys::pagemap_scan(pagemap, others, regions));
    add(regions, true, false, out);
    return take_newcomers(pagemap, maps, group, regions, out);
  }

  // `regions` hold content and aren't registered. All of it counts as dirty already; from here on
  // writes are seen.
  Result<void> take_newcomers(int pagemap, const MapsView& maps, const AreaGroup& group,
                              const std::vector<sys::PageRegion>& regions, Harvest& out) {
    if (regions.empty()) return {};
    if (mremap_clears_bits()) {
      register_group(maps, group);
      return arm_newcomers(pagemap, group.start, group.ceiling, group.anonymous, false, out);
    }
    // Here a page that was moved in between the scan and the registration could carry a stale bit,
    // and be missed: exactly the areas that were seen, all of which is dirty.
    std::uint64_t done_until = 0;
    for (const sys::PageRegion& region : regions) {
      auto area = std::upper_bound(
          maps.content.begin(), maps.content.end(), region.start,
          [](std::uint64_t at, const Area& candidate) { return at < candidate.end; });
      for (; area != maps.content.end() && area->start < region.end; ++area) {
        if (area->start < done_until) continue;
        done_until = area->end;
        if (!try_register(area->start, area->end)) continue;
        TRY(arm_newcomers(pagemap, area->start, area->end, group.anonymous, true, out));
      }
    }
    return {};
  }

  Result<void> arm_newcomers(int pagemap, std::uint64_t start, std::uint64_t end, bool anonymous,
                             bool all_dirty, Harvest& out) {
    std::vector<sys::PageRegion> found;
    sys::ScanQuery arm_them = query(start, end, anonymous);
    arm_them.write_protect = true;
    TRY(sys::pagemap_scan(pagemap, arm_them, found));
    add(found, all_dirty, anonymous, out);
    return {};
  }

  pid_t pid_;
  UniqueFd uffd_;
  std::string lost_;
  bool harvested_ = false;  // Everything was told once.
};

}  // namespace

Result<std::uint64_t> map_count_max() {
  const std::string text = TRY(read_file("/proc/sys/vm/max_map_count"));
  return static_cast<std::uint64_t>(std::strtoull(text.c_str(), nullptr, 10));
}

bool uffd_tracking_supported() {
  if (!sys::pagemap_scan_supported()) return false;
  Result<UniqueFd> uffd = sys::uffd_create(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
  return uffd.ok() && sys::uffd_api(uffd->get(), wanted_features).ok();
}

Result<std::unique_ptr<DirtyTracker>> make_uffd_tracker(pid_t pid, UniqueFd uffd) {
  TRY(sys::uffd_api(uffd.get(), wanted_features));
  auto tracker = std::make_unique<UffdTracker>(pid, std::move(uffd));
  TRY(tracker->arm());
  return std::unique_ptr<DirtyTracker>(std::move(tracker));
}

}  // namespace godwit::memory
