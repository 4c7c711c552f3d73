#include "memory/scan.h"

#include <algorithm>
#include <array>

#include "base/ids.h"
#include "base/io.h"
#include "sys/pagemap.h"

namespace godwit::memory {
namespace {

bool have_pagemap_scan() {
  static const bool have = sys::pagemap_scan_supported();
  return have;
}

Result<void> scan_by_ioctl(int pagemap_fd, const MapsView& maps, Harvest& harvest) {
  std::vector<sys::PageRegion> regions;
  for (const AreaGroup& group : group_areas(maps)) {
    const std::uint64_t unwanted = sys::page_pfnzero | (group.anonymous ? 0 : sys::page_file);
    TRY(sys::pagemap_scan(pagemap_fd,
                          {.start = group.start,
                           .end = group.end,
                           .required = 0,
                           .inverted = unwanted,
                           .any_of = sys::page_present | sys::page_swapped,
                           .returned = sys::page_huge,
                           .write_protect = false,
                           .check_registered = false},
                          regions));
  }
  for (const sys::PageRegion& region : regions) {
    const std::uint64_t page = region.start / page_bytes;
    const std::uint64_t pages = (region.end - region.start) / page_bytes;
    harvest.content.add(page, pages);
    if ((region.categories & sys::page_huge) != 0) harvest.huge.add(page, pages);
  }
  return {};
}

// A word for every page, also of holes: what old kernels cost.
Result<void> scan_by_words(int pagemap_fd, const MapsView& maps, std::uint64_t dirty_word,
                           Harvest& harvest) {
  std::array<std::uint64_t, 16'384> words;
  for (const Area& area : maps.content) {
    const std::uint64_t end = area.end / page_bytes;
    for (std::uint64_t page = area.start / page_bytes; page < end; page += words.size()) {
      std::span<std::uint64_t> part(words.data(),
                                    std::min<std::uint64_t>(words.size(), end - page));
      TRY(sys::pagemap_read(pagemap_fd, page, part));
      for (std::size_t i = 0; i < part.size(); ++i) {
        if ((part[i] & (sys::pagemap_present | sys::pagemap_swapped)) == 0) continue;
        if ((part[i] & sys::pagemap_file) != 0) continue;
        harvest.content.add(page + i);
        if ((part[i] & dirty_word) != 0) harvest.dirty.add(page + i);
      }
    }
  }
  return {};
}

class NoTracker final : public DirtyTracker {
 public:
  explicit NoTracker(pid_t pid) : pid_(pid) {}
  TrackerKind kind() const override { return TrackerKind::none; }
  bool lost(std::string*) const override { return false; }

  Result<Harvest> harvest(HarvestMode) override {
    MapsView maps = TRY(read_areas(pid_));
    Harvest out;
    TRY(scan_content(pid_, maps, 0, out));
    out.dirty = out.content;
    out.areas = std::move(maps.content);
    return out;
  }

 private:
  pid_t pid_;
};

class SoftDirtyTracker final : public DirtyTracker {
 public:
  SoftDirtyTracker(pid_t pid, Pause pause) : pid_(pid), pause_(std::move(pause)) {}
  TrackerKind kind() const override { return TrackerKind::soft_dirty; }
  bool lost(std::string*) const override { return false; }

  Result<Harvest> harvest(HarvestMode mode) override {
    if (mode == HarvestMode::look) return read();
    TRY(pause_(true).with("pause to read soft-dirty bits"));
    Result<Harvest> out = read();
    if (out.ok()) {
      Result<void> cleared = sys::clear_soft_dirty(pid_);
      if (!cleared.ok()) out = std::move(cleared).error();
    }
    TRY(pause_(false).with("continue after reading soft-dirty bits"));
    return out;
  }

 private:
  Result<Harvest> read() {
    MapsView maps = TRY(read_areas(pid_));
    Harvest out;
    TRY(scan_content(pid_, maps, sys::pagemap_soft_dirty, out));
    if (!started_) out.dirty = out.content;  // Nothing was sent yet, whatever the bits say.
    started_ = true;
    out.areas = std::move(maps.content);
    return out;
  }

  pid_t pid_;
  Pause pause_;
  bool started_ = false;
};

}  // namespace

Result<MapsView> read_areas(pid_t pid) {
  Result<std::string> text = read_file(fmt::format("/proc/{}/maps", pid));
  if (!text.ok() && (text.error().sys_errno() == ENOENT || text.error().sys_errno() == ESRCH))
    return make_error(Errc::tracee_gone, "process {} is gone", pid);
  // A zombie and a kernel thread have no mappings, and nothing to move.
  if (text.ok() && text->empty())
    return make_error(Errc::tracee_gone, "process {} has exited", pid);
  return parse_maps(TRY(std::move(text)));
}

Result<void> scan_content(pid_t pid, const MapsView& maps, std::uint64_t dirty_word,
                          Harvest& harvest) {
  UniqueFd pagemap = TRY(sys::open_pagemap(pid));
  if (dirty_word == 0 && have_pagemap_scan()) return scan_by_ioctl(pagemap.get(), maps, harvest);
  return scan_by_words(pagemap.get(), maps, dirty_word, harvest);
}

std::unique_ptr<DirtyTracker> make_no_tracker(pid_t pid) {
  return std::make_unique<NoTracker>(pid);
}

Result<std::unique_ptr<DirtyTracker>> make_soft_dirty_tracker(pid_t pid, Pause pause) {
  if (!sys::soft_dirty_supported())
    return make_error(Errc::unsupported, "this kernel has no soft-dirty bits");
  if (!pause) return make_error(Errc::unsupported, "soft-dirty bits need a way to pause");
  return std::unique_ptr<DirtyTracker>(std::make_unique<SoftDirtyTracker>(pid, std::move(pause)));
}

}  // namespace godwit::memory
