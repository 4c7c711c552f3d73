#include "memory/scan.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>

#include "base/clock.h"
#include "base/ids.h"
#include "base/io.h"
#include "sys/pagemap.h"

namespace godwit::memory {
namespace {

bool have_pagemap_scan() {
  static const bool have = sys::pagemap_scan_supported();
  return have;
}

constexpr std::uint64_t piece_bytes_min = 256ull << 20;
// To start a thread takes 0.1 ms, on a busy machine a turn of somebody else.
constexpr std::int64_t alone_us_max = 200;
constexpr std::uint64_t pieces_max = 64;  // About; a sparse terabyte is no work.

sys::ScanQuery over(std::uint64_t start, std::uint64_t end) {
  sys::ScanQuery query;
  query.start = start;
  query.end = end;
  return query;
}

Result<void> scan_by_ioctl(int pagemap_fd, const MapsView& maps, bool details, Harvest& harvest) {
  constexpr std::uint64_t there = sys::page_present | sys::page_swapped;
  TRY(scan_present(pagemap_fd, maps, harvest.content));
  std::vector<sys::ScanQuery> zero, huge, of_files;
  for (const AreaGroup& group : group_areas(maps)) {
    if (group.anonymous) continue;
    sys::ScanQuery query = over(group.start, group.end);
    query.any_of = there;
    query.inverted = sys::page_pfnzero | sys::page_file;
    query.returned = sys::page_present;
    of_files.push_back(query);
  }
  for (const AreaGroup& piece : anonymous_pieces(maps)) {
    if (!details) break;
    sys::ScanQuery query = over(piece.start, piece.end);
    query.required = query.returned = sys::page_pfnzero;
    zero.push_back(query);
    query.required = query.returned = sys::page_huge;
    huge.push_back(query);
  }
  for (const sys::PageRegion& region : TRY(scan_all(pagemap_fd, of_files)))
    harvest.content.add(region.start / page_bytes, (region.end - region.start) / page_bytes);
  for (const sys::PageRegion& region : TRY(scan_all(pagemap_fd, zero)))
    harvest.content.remove(region.start / page_bytes, (region.end - region.start) / page_bytes);
  for (const sys::PageRegion& region : TRY(scan_all(pagemap_fd, huge)))
    harvest.huge.add(region.start / page_bytes, (region.end - region.start) / page_bytes);
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

  Result<Harvest> harvest(HarvestMode mode, std::optional<MapsView> known) override {
    MapsView maps = known ? std::move(*known) : TRY(read_areas(pid_));
    Harvest out;
    TRY(scan_content(pid_, maps, 0, mode != HarvestMode::glance, out));
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

  Result<Harvest> harvest(HarvestMode mode, std::optional<MapsView> known) override {
    if (mode != HarvestMode::take) return read(std::move(known));
    TRY(pause_(true).with("pause to read soft-dirty bits"));
    Result<Harvest> out = read(std::move(known));
    if (out.ok()) {
      Result<void> cleared = sys::clear_soft_dirty(pid_);
      if (!cleared.ok()) out = std::move(cleared).error();
    }
    TRY(pause_(false).with("continue after reading soft-dirty bits"));
    return out;
  }

 private:
  Result<Harvest> read(std::optional<MapsView> known) {
    MapsView maps = known ? std::move(*known) : TRY(read_areas(pid_));
    Harvest out;
    TRY(scan_content(pid_, maps, sys::pagemap_soft_dirty, true, out));
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

Result<std::vector<sys::PageRegion>> scan_all(int pagemap_fd,
                                              const std::vector<sys::ScanQuery>& queries) {
  std::vector<sys::PageRegion> out;
  std::vector<std::vector<sys::PageRegion>> found(queries.size());
  std::atomic<std::size_t> next{0};
  auto scan_next = [&]() -> Result<bool> {  // False: there was nothing left.
    const std::size_t i = next++;
    if (i >= queries.size()) return false;
    TRY(sys::pagemap_scan(pagemap_fd, queries[i], found[i]));
    return true;
  };
  auto scan_rest = [&]() -> Result<void> {
    while (TRY(scan_next())) {
    }
    return {};
  };
  // Most processes are through before a thread has begun.
  auto scan_alone = [&]() -> Result<void> {
    const std::int64_t began_us = monotonic_us();
    while (monotonic_us() - began_us < alone_us_max && TRY(scan_next())) {
    }
    return {};
  };
  TRY(scan_alone());
  Result<void> ours, other;
  std::thread helper;
  if (next + 1 < queries.size()) helper = std::thread([&] { other = scan_rest(); });
  ours = scan_rest();
  if (helper.joinable()) helper.join();
  TRY(std::move(ours));
  TRY(std::move(other));
  for (const auto& part : found) out.insert(out.end(), part.begin(), part.end());
  return out;
}

std::vector<AreaGroup> anonymous_pieces(const MapsView& maps) {
  std::uint64_t bytes = 0;
  for (const Area& area : maps.content)
    if (area.anonymous) bytes += area.end - area.start;
  const std::uint64_t piece = std::max(piece_bytes_min, bytes / pieces_max);
  std::vector<AreaGroup> out = cut_areas(maps, piece / huge_page_bytes * huge_page_bytes);
  std::erase_if(out, [](const AreaGroup& group) { return !group.anonymous; });
  return out;
}

Result<void> scan_present(int pagemap_fd, const MapsView& maps, PageSet& content) {
  std::vector<sys::ScanQuery> queries;
  for (const AreaGroup& piece : anonymous_pieces(maps)) {
    sys::ScanQuery query = over(piece.start, piece.end);
    query.inverted = sys::page_present | sys::page_swapped;
    query.returned = sys::page_present;
    queries.push_back(query);
  }
  add_between_holes(maps, TRY(scan_all(pagemap_fd, queries)), content);
  return {};
}

void add_between_holes(const MapsView& maps, const std::vector<sys::PageRegion>& holes,
                       PageSet& content) {
  auto hole = holes.begin();
  for (const Area& area : maps.content) {
    if (!area.anonymous) continue;
    std::uint64_t at = area.start;
    while (hole != holes.end() && hole->end <= at) ++hole;
    for (auto h = hole; at < area.end; ++h) {
      const std::uint64_t stop =
          h == holes.end() || h->start >= area.end ? area.end : std::max(at, h->start);
      if (stop > at) content.add(at / page_bytes, (stop - at) / page_bytes);
      if (stop == area.end) break;
      at = h->end;
    }
  }
}

Result<void> scan_content(pid_t pid, const MapsView& maps, std::uint64_t dirty_word, bool details,
                          Harvest& harvest) {
  UniqueFd pagemap = TRY(sys::open_pagemap(pid));
  if (dirty_word == 0 && have_pagemap_scan())
    return scan_by_ioctl(pagemap.get(), maps, details, harvest);
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
