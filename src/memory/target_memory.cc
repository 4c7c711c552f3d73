// Rounds as the target sees them: frames are written as they come, by each stream's own thread;
// what must happen at the end of a round (dropping pages, acknowledging) is done by the caller of
// wait_round, since dropping takes the thread that traces the skeletons.
#include "memory/target_memory.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>

#include "base/clock.h"
#include "base/ids.h"
#include "memory/page_receiver.h"
#include "memory/pager.h"
#include "memory/space_writer.h"
#include "memory/stream_writer.h"
#include "sys/memory_io.h"

namespace godwit::memory {

struct TargetMemory::Impl final : FrameSink {
  struct Round {
    std::size_t streams_done = 0;
    ReceivedRound totals;
  };

  Options options;
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::map<SpaceId, std::shared_ptr<SpaceWriter>> writers;
  std::map<std::uint64_t, Round> rounds;
  std::map<SpaceId, PageSet> drops;     // Of the present round.
  std::map<SpaceId, PageSet> pending;   // Missing until post-copy brings it.
  std::map<SpaceId, bool> has_content;  // Something was written there.
  bool first_round = true;
  HugePageCost huge_page_cost;
  std::optional<Error> error;
  std::shared_ptr<Pager> pager;
  std::vector<std::unique_ptr<PageReceiver>> receivers;  // Last: stops before the rest goes.

  explicit Impl(Options given)
      : options(std::move(given)),
        huge_page_cost(options.huge_page_us_max > 0 ? options.huge_page_us_max
                                                    : HugePageCost::us_max_default) {}

  Result<std::shared_ptr<SpaceWriter>> writer_of(SpaceId space) {
    std::lock_guard lock(mutex);
    auto& writer = writers[space];
    if (!writer) {
      Result<SpaceTarget> target = options.lookup(space);
      if (!target.ok()) {
        writers.erase(space);
        return std::move(target).error().with(fmt::format("space {:#x}", space));
      }
      writer = std::make_shared<SpaceWriter>(space, std::move(target).value(), first_round,
                                             huge_page_cost);
    }
    return writer;
  }

  std::shared_ptr<Pager> pager_for(SpaceId space) const {
    std::lock_guard lock(mutex);
    return pager && pager->serves(space) ? pager : nullptr;
  }

  Result<void> on_data(SpaceId space, std::span<const ArrivedRun> runs) override {
    if (std::shared_ptr<Pager> serving = pager_for(space)) {
      for (const ArrivedRun& arrived : runs)
        TRY(serving->deliver(space, arrived.run, arrived.data));
      return {};
    }
    std::shared_ptr<SpaceWriter> writer = TRY(writer_of(space));
    if (options.room) {
      std::uint64_t pages = 0;
      for (const ArrivedRun& arrived : runs) pages += arrived.run.pages;
      TRY(options.room(pages * page_bytes));
    }
    {
      std::lock_guard lock(mutex);
      has_content[space] = true;
      if (auto waiting = pending.find(space); waiting != pending.end())
        for (const ArrivedRun& arrived : runs)
          waiting->second.remove(arrived.run.page, arrived.run.pages);
    }
    return writer->write(runs);
  }

  Result<void> on_run(wire::FrameType type, SpaceId space, const PageRun& run) override {
    if (std::shared_ptr<Pager> serving = pager_for(space))
      return serving->deliver(space, run, nullptr);
    std::lock_guard lock(mutex);
    drops[space].add(run.page, run.pages);
    if (type == wire::FrameType::pending) {
      if ((space & wire::file_space_bit) != 0)
        return make_error(Errc::invalid, "pages of file {:#x} can't be pending", space);
      pending[space].add(run.page, run.pages);
    } else if (auto waiting = pending.find(space); waiting != pending.end()) {
      waiting->second.remove(run.page, run.pages);
    }
    return {};
  }

  Result<void> on_round_end(std::uint64_t number, const wire::RoundCounts& counts,
                            std::uint64_t bytes) override {
    std::lock_guard lock(mutex);
    Round& round = rounds[number];
    ++round.streams_done;
    round.totals.pages += counts.data_pages;
    round.totals.frames += counts.frames;
    round.totals.bytes += bytes;
    changed.notify_all();
    return {};
  }

  void on_failure(Error failure) override {
    std::shared_ptr<Pager> serving;
    {
      std::lock_guard lock(mutex);
      serving = pager;
      if (!error) error = failure;
      changed.notify_all();
    }
    if (serving) serving->fail(std::move(failure));
  }

  Result<Round> await(std::uint64_t number, std::int64_t timeout_ms) {
    std::unique_lock lock(mutex);
    const bool done = changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] {
      return rounds[number].streams_done == receivers.size() || error;
    });
    if (rounds[number].streams_done == receivers.size()) {
      Round round = rounds[number];
      rounds.erase(number);
      return round;
    }
    if (error) return *error;
    INVARIANT(!done, "woke up without a reason");
    return make_error(Errc::timeout, "round {} isn't complete after {} ms", number, timeout_ms);
  }

  Result<void> acknowledge(std::uint64_t number) {
    for (const auto& receiver : receivers) {
      wire::FrameHeaderBytes ack =
          wire::encode({.type = wire::FrameType::round_ack, .offset = number});
      iovec piece{.iov_base = ack.data(), .iov_len = ack.size()};
      TRY(sys::send_vector(receiver->fd(), std::span(&piece, 1)));
    }
    return {};
  }

  Result<void> drop_pages(SpaceId space, const PageSet& pages, bool must_be_absent) {
    // A space that was never written to has nothing to drop.
    if (!has_content[space]) return {};
    const bool file = (space & wire::file_space_bit) != 0;
    if (!file && options.drop) return options.drop(space, pages.runs());
    if (!file && must_be_absent)
      return make_error(Errc::unsupported, "nobody can make pages of space {:#x} absent", space);
    std::shared_ptr<SpaceWriter> writer = TRY(writer_of(space));
    PageSet mapped;
    if (file) mapped = pages;
    // What isn't mapped any more is gone already.
    for (const Area& area : writer->target().areas)
      mapped.add(pages.within(area.start / page_bytes, (area.end - area.start) / page_bytes));
    for (const PageRun& run : mapped.runs()) TRY(writer->zero(run));
    return {};
  }

  Result<void> end_first_round() {
    std::map<SpaceId, std::shared_ptr<SpaceWriter>> all;
    {
      std::lock_guard lock(mutex);
      first_round = false;
      all = writers;
    }
    for (auto& [space, writer] : all) TRY(writer->end_first_round());
    return {};
  }
};

TargetMemory::TargetMemory(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
TargetMemory::~TargetMemory() = default;

Result<void> TargetMemory::add_stream(int fd) {
  impl_->receivers.push_back(std::make_unique<PageReceiver>(fd, *impl_));
  return {};
}

void TargetMemory::forget_targets() {
  std::lock_guard lock(impl_->mutex);
  impl_->writers.clear();
}

Result<ReceivedRound> TargetMemory::wait_round(std::uint64_t number, std::int64_t timeout_ms) {
  Impl::Round round = TRY(impl_->await(number, timeout_ms));
  // From here until the acknowledgement the source sends nothing: no other thread touches the sets.
  if (impl_->first_round) TRY(impl_->end_first_round());
  const std::int64_t start_us = monotonic_us();
  std::map<SpaceId, PageSet> drops;
  ReceivedRound totals = round.totals;
  {
    std::lock_guard lock(impl_->mutex);
    drops.swap(impl_->drops);
    for (const auto& [space, pages] : impl_->pending) totals.pages_pending += pages.count();
  }
  for (const auto& [space, pages] : drops) {
    PageSet missing = pages;
    if (auto waiting = impl_->pending.find(space); waiting != impl_->pending.end())
      missing.keep_only(waiting->second);
    else
      missing.clear();
    totals.pages_dropped += pages.count();
    TRY(impl_->drop_pages(space, pages, !missing.empty())
            .with(fmt::format("drop pages of space {:#x}", space)));
  }
  totals.round = number;
  totals.drop_us = monotonic_us() - start_us;
  TRY(impl_->acknowledge(number));
  return totals;
}

std::vector<PageRun> TargetMemory::pending_runs(SpaceId space) const {
  std::lock_guard lock(impl_->mutex);
  auto it = impl_->pending.find(space);
  return it == impl_->pending.end() ? std::vector<PageRun>() : it->second.runs();
}

std::string fault_tag(SpaceId space) { return fmt::format("fault-{}", space); }

Result<void> TargetMemory::start_pager(int urgent_fd, Keeper keeper) {
  std::vector<Pager::Space> spaces;
  for (auto& [space, pages] : impl_->pending) {
    if (pages.empty()) continue;
    std::shared_ptr<SpaceWriter> writer = TRY(impl_->writer_of(space));
    spaces.push_back({.id = space, .target = writer->target(), .missing = pages});
  }
  // All the descriptors before the log, which a successor looks for first.
  if (keeper.hold)
    for (const Pager::Space& space : spaces)
      TRY(keeper.hold(fault_tag(space.id), space.target.fault_uffd));
  auto pager = std::make_shared<Pager>(urgent_fd, std::move(keeper));
  TRY(pager->start(std::move(spaces)));
  std::lock_guard lock(impl_->mutex);
  impl_->pager = std::move(pager);
  if (impl_->error) impl_->pager->fail(*impl_->error);
  return {};
}

Result<void> TargetMemory::resume_pager(int urgent_fd, Keeper keeper,
                                        const std::map<SpaceId, pid_t>& pids) {
  auto pager = std::make_shared<Pager>(urgent_fd, std::move(keeper));
  TRY(pager->resume(pids));
  std::lock_guard lock(impl_->mutex);
  impl_->pager = std::move(pager);
  if (impl_->error) impl_->pager->fail(*impl_->error);
  return {};
}

std::map<SpaceId, PageSet> TargetMemory::missing_at_source() const {
  INVARIANT(impl_->pager != nullptr, "no pager");
  return impl_->pager->missing_at_source();
}

Result<void> TargetMemory::release_pager() {
  INVARIANT(impl_->pager != nullptr, "no pager");
  return impl_->pager->release();
}

Result<PagerStats> TargetMemory::wait_drained(std::uint64_t round, std::int64_t timeout_ms) {
  INVARIANT(impl_->pager != nullptr, "no pager");
  const std::int64_t end_us = monotonic_us() + timeout_ms * 1'000;
  TRY(impl_->pager->wait_complete(timeout_ms));
  TRY(impl_->pager->unregister());
  TRY(impl_->await(round, std::max<std::int64_t>(0, (end_us - monotonic_us()) / 1'000)));
  TRY(impl_->acknowledge(round));
  return impl_->pager->stats();
}

PagerStats TargetMemory::pager_stats() const {
  std::shared_ptr<Pager> pager;
  {
    std::lock_guard lock(impl_->mutex);
    pager = impl_->pager;
  }
  return pager ? pager->stats() : PagerStats{};
}

}  // namespace godwit::memory
