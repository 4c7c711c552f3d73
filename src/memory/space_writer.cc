#include "memory/space_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "base/ids.h"
#include "base/log.h"
#include "sys/memory_io.h"
#include "sys/userfaultfd.h"

namespace godwit::memory {
namespace {

constexpr std::uint64_t copy_area_bytes_min = 256 * 1024;

std::int64_t thread_cpu_us() {
  timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<std::int64_t>(t.tv_sec) * 1'000'000 + t.tv_nsec / 1'000;
}

}  // namespace

void HugePageCost::note(std::int64_t cpu_us, std::uint64_t pages) {
  if (pages == 0) return;
  if (cpu_us <= us_max_ * static_cast<std::int64_t>(pages)) {
    expensive_ = 0;
    return;
  }
  if ((expensive_ += static_cast<int>(pages)) < in_a_row || too_high_.exchange(true)) return;
  LOG(info, "a fresh huge page takes {} us here: pages are copied one by one",
      cpu_us / static_cast<std::int64_t>(pages));
}

SpaceWriter::SpaceWriter(SpaceId space, SpaceTarget target, bool first_round,
                         HugePageCost& huge_page_cost)
    : space_(space),
      target_(std::move(target)),
      may_copy_(first_round && target_.copy_uffd >= 0),
      huge_page_cost_(huge_page_cost) {
  for (std::size_t i = 0; i < target_.areas.size(); ++i)
    states_.push_back(std::make_unique<AreaState>());
  if (may_copy_) {
    Result<void> ready = sys::uffd_api(target_.copy_uffd, 0);
    if (!ready.ok()) {
      LOG(warn, "space {:#x}: writing without userfaultfd: {}", space_, ready.error().what());
      may_copy_ = false;
    }
  }
}

Result<void> SpaceWriter::write_file(const PageRun& run, const std::byte* data) {
  std::uint64_t done = 0;
  const std::uint64_t bytes = run.pages * page_bytes;
  while (done < bytes) {
    const ssize_t n = ::pwrite(target_.file_fd, data + done, bytes - done,
                               static_cast<off_t>(run.page * page_bytes + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return os_error(fmt::format("pwrite(private file {:#x})", space_));
    done += static_cast<std::uint64_t>(n);
  }
  return {};
}

// Decides on the first frame for an area; see the top of the header.
Result<SpaceWriter::Way> SpaceWriter::way_for(std::size_t index, bool huge) {
  const Area& area = target_.areas[index];
  AreaState& state = *states_[index];
  huge = huge && !huge_page_cost_.too_high();
  const Way known = state.way.load(std::memory_order_acquire);
  if (known == Way::write || (known == Way::copy && !huge)) return known;
  std::lock_guard lock(state.change);
  Way way = state.way.load(std::memory_order_acquire);
  if (way == Way::undecided) {
    way = Way::write;
    if (may_copy_ && !huge && area.anonymous && area.end - area.start >= copy_area_bytes_min &&
        sys::uffd_register(target_.copy_uffd, area.start, area.end, sys::UffdMode::missing).ok())
      way = Way::copy;
  } else if (way == Way::copy && huge) {
    TRY(sys::uffd_unregister(target_.copy_uffd, area.start, area.end));
    way = Way::write;
  }
  state.way.store(way, std::memory_order_release);
  return way;
}

// How many pages from the start of the run are done; fewer than all when the area is no longer
// registered.
Result<std::uint64_t> SpaceWriter::copy(const PageRun& run, const std::byte* data) {
  std::uint64_t done = 0;
  while (done < run.pages) {
    const std::uint64_t at = (run.page + done) * page_bytes;
    const sys::UffdProgress progress = sys::uffd_copy(
        target_.copy_uffd, at, data + done * page_bytes, (run.pages - done) * page_bytes);
    done += progress.bytes / page_bytes;
    switch (progress.stopped_by) {
      case 0:
      case EAGAIN:
        break;
      case EEXIST: {  // This page is there: write over it.
        const ArrivedRun one{.run = {.page = run.page + done, .pages = 1},
                             .data = data + done * page_bytes};
        TRY(write_plain(std::span(&one, 1)));
        ++done;
        break;
      }
      case ENOENT:
        return done;
      default:
        return os_error(fmt::format("UFFDIO_COPY(space={:#x}, {:#x})", space_, at),
                        progress.stopped_by);
    }
  }
  return done;
}

Result<void> SpaceWriter::force(const PageRun& run, const std::byte* data) {
  return sys::mem_write(target_.mem_fd, run.page * page_bytes, {data, run.pages * page_bytes})
      .with(fmt::format("space {:#x}", space_));
}

Result<void> SpaceWriter::write_plain(std::span<const ArrivedRun> runs) {
  std::vector<iovec> from;
  std::vector<sys::RemoteRange> to;
  std::size_t first = 0;
  while (first < runs.size()) {
    from.clear();
    to.clear();
    std::uint64_t asked = 0;
    const std::size_t count = std::min(runs.size() - first, sys::iovecs_max);
    for (const ArrivedRun& arrived : runs.subspan(first, count)) {
      const std::uint64_t bytes = arrived.run.pages * page_bytes;
      from.push_back({.iov_base = const_cast<std::byte*>(arrived.data), .iov_len = bytes});
      to.push_back({.address = arrived.run.page * page_bytes, .bytes = bytes});
      asked += bytes;
    }
    Result<std::uint64_t> wrote = sys::vm_write(target_.pid, from, to);
    if (!wrote.ok() && wrote.error().code() == Errc::tracee_gone) return std::move(wrote).error();
    if (wrote.ok() && *wrote == asked) {
      first += count;
      continue;
    }
    std::uint64_t pages = wrote.ok() ? *wrote / page_bytes : 0;
    while (pages >= runs[first].run.pages) pages -= runs[first++].run.pages;
    // What it refused, whole: these mappings are small or rare.
    const PageRun rest{.page = runs[first].run.page + pages,
                       .pages = runs[first].run.pages - pages};
    TRY(force(rest, runs[first].data + pages * page_bytes));
    ++first;
  }
  return {};
}

// Areas that were filled with huge pages so far take the rest one by one.
void SpaceWriter::turn_to_copying() {
  std::unique_lock alone(turning_);
  if (turned_) return;
  turned_ = true;
  for (std::size_t i = 0; i < states_.size(); ++i) {
    const Area& area = target_.areas[i];
    if (states_[i]->way != Way::write || !area.anonymous ||
        area.end - area.start < copy_area_bytes_min)
      continue;
    if (sys::uffd_register(target_.copy_uffd, area.start, area.end, sys::UffdMode::missing).ok())
      states_[i]->way = Way::copy;
  }
}

Result<void> SpaceWriter::write(std::span<const ArrivedRun> runs) {
  if (is_file()) {
    for (const ArrivedRun& arrived : runs) TRY(write_file(arrived.run, arrived.data));
    return {};
  }
  std::shared_lock together(turning_);
  if (may_copy_ && huge_page_cost_.too_high() && !turned_) {
    together.unlock();
    turn_to_copying();
    together.lock();
  }
  return write_pages(runs);
}

// Measured by this thread's processor time, which the host's work for a page of ours is part of.
Result<void> SpaceWriter::write_measured(std::span<const ArrivedRun> runs) {
  std::uint64_t fresh = 0;
  if (may_copy_)
    for (const ArrivedRun& arrived : runs)
      if (arrived.run.huge && arrived.run.page % (huge_page_bytes / page_bytes) == 0) ++fresh;
  if (fresh == 0) return write_plain(runs);
  const std::int64_t start_us = thread_cpu_us();
  TRY(write_plain(runs));
  huge_page_cost_.note(thread_cpu_us() - start_us, fresh);
  return {};
}

Result<void> SpaceWriter::write_pages(std::span<const ArrivedRun> runs) {
  std::vector<ArrivedRun> plain;
  for (ArrivedRun left : runs) {
    while (left.run.pages > 0) {
      const std::uint64_t address = left.run.page * page_bytes;
      auto area = std::upper_bound(target_.areas.begin(), target_.areas.end(), address,
                                   [](std::uint64_t a, const Area& b) { return a < b.end; });
      if (area == target_.areas.end() || area->start > address)
        return make_error(Errc::invalid, "space {:#x} has no area for page {:#x}", space_, address);
      ArrivedRun part = left;
      part.run.pages = std::min(part.run.pages, (area->end - address) / page_bytes);
      left.run.page += part.run.pages;
      left.run.pages -= part.run.pages;
      left.data += part.run.pages * page_bytes;
      const auto index = static_cast<std::size_t>(area - target_.areas.begin());
      if (TRY(way_for(index, part.run.huge)) == Way::copy) {
        const std::uint64_t done = TRY(copy(part.run, part.data));
        part.run.page += done;
        part.run.pages -= done;
        part.data += done * page_bytes;
        if (part.run.pages == 0) continue;
      }
      plain.push_back(part);
    }
  }
  return write_measured(plain);
}

Result<void> SpaceWriter::zero(const PageRun& run) {
  if (is_file()) {
    if (::fallocate(target_.file_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(run.page * page_bytes),
                    static_cast<off_t>(run.pages * page_bytes)) == 0)
      return {};
    if (errno != EOPNOTSUPP) return os_error(fmt::format("punch a hole into {:#x}", space_));
  }
  alignas(page_bytes) static const std::byte zeros[64 * page_bytes] = {};
  for (std::uint64_t page = run.page; page < run.end();) {
    const std::uint64_t pages = std::min<std::uint64_t>(64, run.end() - page);
    const ArrivedRun part{.run = {.page = page, .pages = pages}, .data = zeros};
    if (is_file())
      TRY(write_file(part.run, part.data));
    else
      TRY(write_plain(std::span(&part, 1)));
    page += pages;
  }
  return {};
}

Result<void> SpaceWriter::end_first_round() {
  may_copy_ = false;
  for (std::size_t i = 0; i < states_.size(); ++i) {
    std::lock_guard lock(states_[i]->change);
    if (states_[i]->way.exchange(Way::write) != Way::copy) continue;
    const Area& area = target_.areas[i];
    TRY(sys::uffd_unregister(target_.copy_uffd, area.start, area.end));
  }
  return {};
}

}  // namespace godwit::memory
