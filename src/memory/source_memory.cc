// Rounds. What each set of a process means is in source_impl.h; how pages are found in
// dirty_tracker.h; how they are sent in page_sender.h.
#include "memory/source_memory.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/ids.h"
#include "memory/scan.h"
#include "memory/source_impl.h"
#include "sys/memory_io.h"

namespace godwit::memory {
namespace {

constexpr std::size_t run_frames_per_flush = 512;

// Calls `visit(first page, pages)` for everything that lies in none of the (ascending) areas.
template <typename Visit>
void for_each_gap(const std::vector<Area>& areas, Visit visit) {
  std::uint64_t at = 0;
  for (const Area& area : areas) {
    if (area.start > at) visit(at / page_bytes, (area.start - at) / page_bytes);
    at = std::max(at, area.end);
  }
  const std::uint64_t end = wire::frame_offset_end;
  if (at < end) visit(at / page_bytes, (end - at) / page_bytes);
}

// The parts where both layouts hold the same content.
std::vector<Area> kept(const std::vector<Area>& before, const std::vector<Area>& after) {
  std::vector<Area> out;
  auto a = before.begin();
  auto b = after.begin();
  while (a != before.end() && b != after.end()) {
    const std::uint64_t start = std::max(a->start, b->start);
    const std::uint64_t end = std::min(a->end, b->end);
    if (start < end && a->same_content_as(*b)) {
      Area part = *b;
      part.start = start;
      part.end = end;
      out.push_back(std::move(part));
    }
    if (a->end < b->end)
      ++a;
    else
      ++b;
  }
  return out;
}

// The part of `set` in private file mappings, which post-copy can't serve.
PageSet in_file_areas(const PageSet& set, const std::vector<Area>& areas) {
  PageSet out;
  for (const Area& area : areas) {
    if (area.anonymous) continue;
    const std::uint64_t page = area.start / page_bytes;
    const std::uint64_t pages = (area.end - area.start) / page_bytes;
    if (set.next_run(page, 1).page < page + pages) out.add(set.within(page, pages));
  }
  return out;
}

Result<void> send_runs(StreamWriter& writer, wire::FrameType type, SpaceId space,
                       const PageSet& set) {
  for (PageRun run = set.next_run(0); run.pages != 0; run = set.next_run(run.end())) {
    writer.run(type, space, run);
    if (writer.frames_waiting() >= run_frames_per_flush) TRY(writer.flush());
  }
  return writer.flush();
}

bool is_last(RoundKind kind) { return kind == RoundKind::last || kind == RoundKind::last_postcopy; }

bool announces(RoundKind kind) {
  return kind == RoundKind::announce || kind == RoundKind::last_postcopy;
}

// What one round does for one process.
struct Plan {
  SpaceId space = 0;
  ProcessSpace* process = nullptr;
  PageSet drop;
  PageSet announce;
  PageSet send;
};

// Updates the process's sets by what the harvest says, and decides what to do about each page.
Plan plan_process(SpaceId space, ProcessSpace& p, Harvest harvest, const RoundOptions& options,
                  RoundStats& stats) {
  Plan plan{.space = space, .process = &p, .drop = {}, .announce = {}, .send = {}};
  // A page's history before the first harvest isn't known, whatever its bits say.
  p.todo.add(p.harvested ? harvest.dirty : harvest.content);
  p.harvested = true;
  // What is there and isn't at the target goes there, whatever its bits say. A page that was moved
  // away by mremap(2) just when it was to be read looked like zeros or like nothing, and is clean
  // when it comes back. Pages that really hold zeros are looked at again, which costs a reading.
  PageSet absent = harvest.content;
  absent.remove(p.at_target);
  absent.remove(p.pending);
  p.todo.add(absent);

  plan.drop = p.at_target;
  plan.drop.add(p.pending);
  plan.drop.remove(harvest.content);
  p.at_target.remove(plan.drop);
  p.pending.remove(plan.drop);
  p.todo.keep_only(harvest.content);

  if (!announces(options.kind)) {
    p.todo.add(p.pending);
    p.at_target.add(p.pending);  // So that zeros among them are told, too: the target waits.
    p.pending.clear();
  }
  plan.send = p.todo;
  if (p.layout) {
    for_each_gap(*p.layout,
                 [&](std::uint64_t page, std::uint64_t pages) { plan.send.remove(page, pages); });
    stats.pages_held_back += p.todo.count() - plan.send.count();
  }
  if (announces(options.kind)) {
    plan.announce = plan.send;
    plan.announce.remove(in_file_areas(plan.send, harvest.areas));
    if (is_last(options.kind)) {
      // What is pending already may be sent too: the target then forgets that it is pending.
      PageSet candidates = plan.announce;
      candidates.add(p.pending);
      PageSet eager;
      for (const RoundOptions::Range& range : options.eager) {
        if (range.space != space) continue;
        const std::uint64_t first = range.start / page_bytes;
        const std::uint64_t end = (range.end + page_bytes - 1) / page_bytes;
        eager.add(candidates.within(first, end - first));
      }
      plan.announce.remove(eager);
      PageSet told = eager;
      told.keep_only(p.pending);
      p.at_target.add(told);  // As above.
      p.pending.remove(eager);
      plan.send.remove(plan.announce);
      plan.send.add(eager);
    } else {
      plan.send.clear();
    }
    p.at_target.remove(plan.announce);
    p.todo.remove(plan.announce);
    plan.announce.remove(p.pending);  // Told before, and still so.
    p.pending.add(plan.announce);
    plan.send.remove(p.pending);
    p.todo.remove(p.pending);
  }
  return plan;
}

std::vector<PageRun> marked_runs(const PageSet& set, const PageSet& huge) {
  std::vector<PageRun> out;
  PageSet in_huge = set;
  in_huge.keep_only(huge);
  in_huge.for_each_run([&](PageRun run) {
    run.huge = true;
    out.push_back(run);
  });
  PageSet small = set;
  small.remove(huge);
  small.for_each_run([&](const PageRun& run) { out.push_back(run); });
  return out;
}

}  // namespace

SourceMemory::SourceMemory(Options options) : impl_(std::make_unique<Impl>()) {
  impl_->options = std::move(options);
}
SourceMemory::~SourceMemory() = default;

Result<void> SourceMemory::add_process(SpaceId space, pid_t pid) {
  if ((space & wire::file_space_bit) != 0 || space == 0 || has_space(space))
    return make_error(Errc::invalid, "space {:#x} can't be added as a process", space);
  ProcessSpace process;
  process.pid = pid;
  process.tracker = make_no_tracker(pid);
  process.tracker_reason = "not armed";
  auto [at, added] = impl_->processes.emplace(space, std::move(process));
  INVARIANT(added, "space {:#x}", space);
  Result<std::unique_ptr<ProcessSource>> source = ProcessSource::open(pid, &at->second.at_target);
  if (!source.ok()) {
    impl_->processes.erase(at);
    return std::move(source).error();
  }
  at->second.source = std::move(source).value();
  return {};
}

Result<void> SourceMemory::add_file(SpaceId space, UniqueFd fd) {
  if ((space & wire::file_space_bit) == 0 || has_space(space))
    return make_error(Errc::invalid, "space {:#x} can't be added as a file", space);
  impl_->files.emplace(space, std::make_unique<FileSpace>(std::move(fd)));
  return {};
}

void SourceMemory::remove_space(SpaceId space) {
  impl_->processes.erase(space);
  impl_->files.erase(space);
}

bool SourceMemory::has_space(SpaceId space) const {
  return impl_->processes.contains(space) || impl_->files.contains(space);
}

Result<Tracking> SourceMemory::arm(const UffdMaker& maker) {
  Tracking least{.kind = TrackerKind::uffd_wp, .reason = {}};
  for (auto& entry : impl_->processes) {
    ProcessSpace& p = entry.second;
    const bool works = p.tracker->kind() != TrackerKind::none && !p.tracker->lost(nullptr);
    if (!works) {
      auto attempt = [&]() -> Result<std::unique_ptr<DirtyTracker>> {
        if (!impl_->options.track) return make_error(Errc::unsupported, "switched off");
        if (!uffd_tracking_supported())
          return make_error(Errc::unsupported, "this kernel lacks PAGEMAP_SCAN or WP_ASYNC");
        return make_uffd_tracker(p.pid, TRY(maker(p.pid)));
      };
      Result<std::unique_ptr<DirtyTracker>> tracker = attempt();
      p.tracker_reason.clear();
      if (!tracker.ok()) {
        p.tracker_reason = tracker.error().what();
        if (impl_->options.track) tracker = make_soft_dirty_tracker(p.pid, impl_->options.pause);
        if (!tracker.ok() && impl_->options.track)
          p.tracker_reason += "; " + tracker.error().what();
      }
      p.tracker = tracker.ok() ? std::move(tracker).value() : make_no_tracker(p.pid);
      p.harvested = false;
    }
    if (p.tracker->kind() != TrackerKind::uffd_wp && least.kind != TrackerKind::none)
      least = {.kind = p.tracker->kind(), .reason = p.tracker_reason};
  }
  return least;
}

void SourceMemory::disarm() {
  for (auto& [space, p] : impl_->processes) p.tracker = make_no_tracker(p.pid);
}

void SourceMemory::set_target_layout(SpaceId space, std::vector<Area> areas) {
  auto it = impl_->processes.find(space);
  if (it == impl_->processes.end()) return;
  ProcessSpace& p = it->second;
  // Where the target's content is of another mapping now, it is gone there.
  const std::vector<Area> same = p.layout ? kept(*p.layout, areas) : areas;
  for_each_gap(same, [&p](std::uint64_t page, std::uint64_t pages) {
    p.todo.add(p.at_target.within(page, pages));
    p.at_target.remove(page, pages);
  });
  p.layout = std::move(areas);
}

void SourceMemory::set_frozen_layout(SpaceId space, const image::Mm& mm) {
  auto it = impl_->processes.find(space);
  if (it != impl_->processes.end()) it->second.frozen = maps_view(mm);
}

Result<DirtyEstimate> SourceMemory::estimate_dirty() {
  const std::int64_t start_us = monotonic_us();
  DirtyEstimate out;
  for (auto& [space, p] : impl_->processes) {
    Result<Harvest> harvest = p.tracker->harvest(HarvestMode::glance);
    if (!harvest.ok() && harvest.error().code() == Errc::tracee_gone) continue;
    Harvest now = TRY(std::move(harvest));
    PageSet dirty = p.harvested ? std::move(now.dirty) : now.content;
    dirty.add(p.todo);
    dirty.keep_only(now.content);
    out.pages += dirty.count();
  }
  out.us = monotonic_us() - start_us;
  return out;
}

Result<void> read_ack(int stream, std::uint64_t round, std::int64_t timeout_ms) {
  if (!TRY(sys::wait_readable(stream, timeout_ms)))
    return make_error(Errc::timeout, "round {} wasn't acknowledged within {} ms", round,
                      timeout_ms);
  wire::FrameHeaderBytes bytes;
  TRY(sys::receive_exact(stream, bytes));
  wire::FrameHeader header = TRY(wire::decode_header(bytes));
  if (header.type != wire::FrameType::round_ack || header.offset != round)
    return make_error(Errc::invalid, "expected the acknowledgement of round {}, got type {} {}",
                      round, static_cast<int>(header.type), header.offset);
  return {};
}

Result<void> SourceMemory::await_ack(std::span<const int> streams, std::uint64_t round,
                                     std::int64_t timeout_ms) {
  const std::int64_t end_us = monotonic_us() + timeout_ms * 1'000;
  while (!impl_->acks_due.empty() && impl_->acks_due.front() <= round) {
    for (int stream : streams)
      TRY(read_ack(stream, impl_->acks_due.front(),
                   std::max<std::int64_t>(0, (end_us - monotonic_us()) / 1'000)));
    impl_->acks_due.pop_front();
  }
  return {};
}

namespace {

// Harvests every process; those that have ended leave, unless the round is a last one.
Result<std::vector<std::pair<Plan, PageSet>>> plan_round(std::map<SpaceId, ProcessSpace>& processes,
                                                         const RoundOptions& options,
                                                         RoundStats& stats) {
  std::vector<std::pair<Plan, PageSet>> plans;  // With the huge pages of the process.
  // What is announced needn't be told apart.
  const HarvestMode mode = !is_last(options.kind)    ? HarvestMode::take
                           : announces(options.kind) ? HarvestMode::glance
                                                     : HarvestMode::look;
  for (auto& [space, p] : processes) {
    Result<Harvest> harvest = is_last(options.kind)
                                  ? p.tracker->harvest(mode, std::exchange(p.frozen, std::nullopt))
                                  : p.tracker->harvest(mode);
    if (!harvest.ok() && harvest.error().code() == Errc::tracee_gone && !is_last(options.kind)) {
      stats.spaces_gone.push_back(space);
      continue;
    }
    if (!harvest.ok()) return std::move(harvest).error().with(fmt::format("process {}", p.pid));
    PageSet huge = harvest->huge;
    plans.emplace_back(plan_process(space, p, std::move(harvest).value(), options, stats),
                       std::move(huge));
  }
  for (SpaceId space : stats.spaces_gone) processes.erase(space);
  return plans;
}

Result<void> check_complete(const Plan& plan, const SendJob& job) {
  const PageRun lost = job.unreadable.next_run(0, 1);
  if (lost.pages == 0) return {};
  Result<MapsView> alive = read_areas(plan.process->pid);
  if (!alive.ok()) return std::move(alive).error();
  return make_error(Errc::refused, "page {:#x} of process {} can't be read", lost.page * page_bytes,
                    plan.process->pid);
}

}  // namespace

Result<RoundStats> SourceMemory::send_round(std::span<const int> streams,
                                            const RoundOptions& options) {
  RoundStats stats;
  stats.round = options.round;
  if (!impl_->acks_due.empty()) TRY(await_ack(streams, impl_->acks_due.back(), 60'000));

  const std::int64_t start_us = monotonic_us();
  std::vector<std::pair<Plan, PageSet>> plans = TRY(plan_round(impl_->processes, options, stats));
  if (is_last(options.kind) && stats.pages_held_back != 0)
    return make_error(Errc::internal, "{} pages lie in no mapping of the image",
                      stats.pages_held_back);
  std::vector<SendJob> jobs;
  for (auto& [plan, huge] : plans)
    jobs.push_back({.space = plan.space,
                    .source = plan.process->source.get(),
                    .runs = marked_runs(plan.send, huge),
                    .sent = {},
                    .zero = {},
                    .unreadable = {}});
  std::vector<std::pair<SpaceId, PageSet>> file_drops;
  // An announcing round while the program runs sends nothing.
  if (options.kind != RoundKind::announce) {
    for (auto& [space, file] : impl_->files) {
      std::vector<PageRun> dropped;
      std::vector<PageRun> runs =
          TRY(file->source.survey(dropped).with(fmt::format("private file {:#x}", space)));
      jobs.push_back({.space = space,
                      .source = &file->source,
                      .runs = std::move(runs),
                      .sent = {},
                      .zero = {},
                      .unreadable = {}});
      PageSet drops;
      for (const PageRun& run : dropped) drops.add(run.page, run.pages);
      file_drops.emplace_back(space, std::move(drops));
    }
  }
  const std::int64_t harvested_us = monotonic_us();
  stats.harvest_us = harvested_us - start_us;

  // From here what is told is also done: a failure ends the migration.
  std::vector<StreamWriter> writers;
  for (int stream : streams) writers.emplace_back(stream);
  for (auto& [plan, huge] : plans) {
    stats.pages_dropped += plan.drop.count();
    TRY(send_runs(writers[0], wire::FrameType::drop, plan.space, plan.drop));
    TRY(send_runs(writers[0], wire::FrameType::pending, plan.space, plan.announce));
  }
  for (auto& [space, drops] : file_drops) {
    stats.pages_dropped += drops.count();
    TRY(send_runs(writers[0], wire::FrameType::drop, space, drops));
  }
  SendTotals totals = TRY(send_jobs(jobs, writers));
  for (StreamWriter& writer : writers) TRY(writer.end_round(options.round));
  impl_->acks_due.push_back(options.round);

  std::uint64_t pending = 0;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const SendJob& job = jobs[i];
    if (i >= plans.size()) {
      impl_->files.at(job.space)->source.sent(job.sent, job.zero);
      continue;
    }
    ProcessSpace& p = *plans[i].first.process;
    p.at_target.add(job.sent);
    p.at_target.remove(job.zero);
    p.todo.remove(job.sent);
    p.todo.remove(job.zero);
    pending += p.pending.count();
    if (is_last(options.kind)) TRY(check_complete(plans[i].first, job));
  }
  impl_->pages_pending = pending;
  stats.pages_pending = pending;
  stats.pages = totals.pages;
  stats.pages_zero = totals.pages_zero;
  stats.pages_dropped += totals.pages_dropped;
  for (const StreamWriter& writer : writers) stats.bytes += writer.bytes_sent();
  const std::int64_t sent_us = monotonic_us();
  stats.send_us = sent_us - harvested_us;
  if (options.ack_timeout_ms > 0) {
    TRY(await_ack(streams, options.round, options.ack_timeout_ms));
    stats.ack_us = monotonic_us() - sent_us;
  }
  return stats;
}

Result<void> SourceMemory::set_pending(SpaceId space, const PageSet& missing) {
  auto process = impl_->processes.find(space);
  if (process == impl_->processes.end())
    return make_error(Errc::tracee_gone, "process {} is gone, with pages that the target lacks",
                      space);
  process->second.pending.add(missing);
  impl_->pages_pending += missing.count();
  return {};
}

std::uint64_t SourceMemory::pages_pending() const { return impl_->pages_pending; }

}  // namespace godwit::memory
