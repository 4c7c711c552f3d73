#include "memory/pager.h"

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "base/clock.h"
#include "base/ids.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread_name.h"
#include "memory/areas.h"
#include "memory/scan.h"
#include "sys/memory_io.h"
#include "sys/thread_priority.h"

namespace godwit::memory {
namespace {

constexpr std::uint64_t event_features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
                                         UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
// The lock is held for one such piece: about 30 us, which is what a fault may wait for it.
constexpr std::uint64_t piece_pages = 32;
// From a mapping's end to the event that tells of it: a thread has to get a processor.
constexpr std::int64_t event_limit_us = 60'000'000;
constexpr std::size_t fault_times_max = 1 << 20;
// All that a program can map, but for the first pages, which nobody can.
constexpr std::uint64_t user_start = 1 << 16;
constexpr std::uint64_t user_end = 0x7ffffffff000;

const char* const fault_log_tag = "fault-log";
std::string fork_tag(std::uint64_t fork) { return fmt::format("fault-fork-{}", fork); }

std::uint64_t fault_key(SpaceId space, std::uint64_t page) {
  return (static_cast<std::uint64_t>(space) << 45) ^ page;  // Pages are below 2^45.
}

}  // namespace

// Bulk copying lets those first who answer faults: a plain mutex would let it win again and again.
class Pager::UrgentLock {
 public:
  explicit UrgentLock(Pager& pager) : pager_(pager) {
    ++pager_.urgent_waiting_;
    pager_.mutex_.lock();
    --pager_.urgent_waiting_;
  }
  ~UrgentLock() { pager_.mutex_.unlock(); }
  UrgentLock(const UrgentLock&) = delete;
  UrgentLock& operator=(const UrgentLock&) = delete;

 private:
  Pager& pager_;
};

Pager::Pager(int urgent_fd, TargetMemory::Keeper keeper)
    : urgent_fd_(urgent_fd), requests_(urgent_fd), keeper_(std::move(keeper)) {}

Pager::~Pager() {
  if (!thread_.joinable()) return;
  {
    UrgentLock lock(*this);
    stopping_ = true;
  }
  const std::uint64_t one = 1;
  // Can't fail but by overflow of a counter which this only writer sets once.
  (void)!::write(stop_event_.get(), &one, sizeof one);
  sys::shutdown_socket(urgent_fd_);
  thread_.join();
}

Result<void> Pager::start(std::vector<Space> spaces) {
  stop_event_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop_event_.valid()) return os_error("eventfd");
  for (Space& space : spaces) {
    const std::string where = fmt::format("post-copy of space {:#x}", space.id);
    if (space.target.fault_uffd < 0)
      return make_error(Errc::invalid, "{}: no userfaultfd for faults", where);
    TRY(sys::uffd_api(space.target.fault_uffd, event_features).with(where));
    PageSet outside = space.missing;
    for (const Area& area : space.target.areas) {
      const std::uint64_t page = area.start / page_bytes;
      const std::uint64_t pages = (area.end - area.start) / page_bytes;
      if (!area.anonymous || space.missing.next_run(page, 1).pages == 0 ||
          space.missing.next_run(page, 1).page >= page + pages)
        continue;
      TRY(sys::uffd_register(space.target.fault_uffd, area.start, area.end, sys::UffdMode::missing)
              .with(where));
      outside.remove(page, pages);
    }
    const PageRun stray = outside.next_run(0, 1);
    if (stray.pages != 0)
      return make_error(Errc::invalid, "{}: missing page {:#x} is in no anonymous area", where,
                        stray.page * page_bytes);
    left_ += space.missing.count();
    served_.emplace(space.id, space.target.pid);
    View view;
    view.space = space.id;
    view.index = views_.size();
    view.uffd = space.target.fault_uffd;
    view.missing = std::move(space.missing);
    views_.push_back(std::move(view));
  }
  if (keeper_.hold) {
    FaultLog::Missing missing;
    for (const View& view : views_) missing[view.space] = view.missing;
    log_.emplace(TRY(FaultLog::create(missing)));
    TRY(keeper_.hold(fault_log_tag, log_->fd()));
  }
  thread_ = std::thread([this] { loop(); });
  return {};
}

Result<void> Pager::resume(const std::map<SpaceId, pid_t>& pids) {
  stop_event_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop_event_.valid()) return os_error("eventfd");
  FaultLog log = TRY(FaultLog::open(TRY(keeper_.fetch(fault_log_tag))));
  for (const auto& [space, missing] : log.missing()) {
    View view;
    view.space = space;
    view.index = views_.size();
    view.owned = TRY(keeper_.fetch(fault_tag(space)));
    view.uffd = view.owned.get();
    view.missing = missing;
    left_ += missing.count();
    auto pid = pids.find(space);
    served_.emplace(space, pid == pids.end() ? -1 : pid->second);
    views_.push_back(std::move(view));
  }
  for (const FaultLog::Entry& entry : log.entries()) {
    auto view = std::find_if(views_.begin(), views_.end(),
                             [&](const View& v) { return v.index == entry.view; });
    if (view == views_.end())
      return make_error(Errc::invalid, "the log of faults tells of view {}", entry.view);
    if (entry.message.event == UFFD_EVENT_FORK)
      add_child(*view, TRY(keeper_.fetch(fork_tag(forks_))));
    else
      TRY(handle(*view, entry.message));
  }
  log_.emplace(std::move(log));
  // Who waits for an answer of the dead one asks again.
  for (const View& view : views_) sys::uffd_wake(view.uffd, user_start, user_end - user_start);
  thread_ = std::thread([this] { loop(); });
  return {};
}

Result<void> TargetMemory::release_held(const Keeper& keeper) {
  Result<UniqueFd> held = keeper.fetch(fault_log_tag);
  if (!held.ok() && held.error().code() == Errc::not_found) return {};
  FaultLog log = TRY(FaultLog::open(TRY(std::move(held))));
  std::uint64_t forks = 0;
  for (const FaultLog::Entry& entry : log.entries())
    if (entry.message.event == UFFD_EVENT_FORK) TRY(keeper.drop(fork_tag(forks++)));
  for (const auto& [space, missing] : log.missing()) TRY(keeper.drop(fault_tag(space)));
  return keeper.drop(fault_log_tag);
}

std::map<SpaceId, PageSet> Pager::missing_at_source() const {
  std::lock_guard lock(mutex_);
  std::map<SpaceId, PageSet> all;
  for (const View& view : views_) {
    if (view.dead) continue;
    if (view.moved.empty()) {
      all[view.space].add(view.missing);
      continue;
    }
    view.missing.for_each_run([&](const PageRun& run) {
      for (std::uint64_t page = run.page; page < run.end(); ++page)
        all[view.space].add(view.moved.source_of(page));
    });
  }
  return all;
}

void Pager::fail(Error error) {
  UrgentLock lock(*this);
  if (!error_) error_ = std::move(error);
  changed_.notify_all();
}

void Pager::loop() {
  name_thread("godwit-pager");
  if (!sys::raise_thread_priority()) LOG(info, "the pager runs at ordinary priority");
  bool linked = true;
  std::vector<pollfd> waiting;
  std::vector<View*> polled;
  while (true) {
    waiting.assign({{.fd = stop_event_.get(), .events = POLLIN, .revents = 0},
                    {.fd = linked ? urgent_fd_ : -1, .events = POLLIN, .revents = 0}});
    polled.clear();
    {
      UrgentLock lock(*this);
      for (View& view : views_) {
        if (view.dead) continue;
        waiting.push_back({.fd = view.uffd, .events = POLLIN, .revents = 0});
        polled.push_back(&view);
      }
    }
    if (::poll(waiting.data(), waiting.size(), -1) < 0 && errno != EINTR)
      return fail(os_error("poll"));
    {
      UrgentLock lock(*this);
      if (stopping_) return;
      for (std::size_t i = 0; i < polled.size(); ++i) {
        if (waiting[i + 2].revents == 0 || polled[i]->dead) continue;
        Result<void> handled = (waiting[i + 2].revents & POLLIN) != 0
                                   ? read_events(*polled[i])
                                   : Result<void>(make_error(Errc::internal, "userfaultfd broke"));
        if (handled.ok()) continue;
        // Its pages stay missing, and its faults blocked.
        if (handled.error().code() != Errc::peer_lost) polled[i]->dead = true;
        if (!error_) error_ = std::move(handled).error();
      }
      if (error_) changed_.notify_all();
    }
    if (linked && waiting[1].revents != 0) {
      Result<void> received = receive_urgent();
      if (!received.ok()) {
        // Faults stay blocked; events (fork, munmap) are still handled, so that nothing else is.
        linked = false;
        fail(std::move(received).error().with("urgent link"));
      }
    }
  }
}

Result<void> Pager::receive_urgent() {
  wire::FrameHeaderBytes bytes;
  TRY(sys::receive_exact(urgent_fd_, bytes));
  const wire::FrameHeader header = TRY(wire::decode_header(bytes));
  const PageRun run{.page = header.offset / page_bytes, .pages = header.pages};
  if (header.type == wire::FrameType::drop) return deliver(header.space, run, nullptr);
  if (header.type != wire::FrameType::urgent)
    return make_error(Errc::invalid, "frame type {} on the urgent stream",
                      static_cast<int>(header.type));
  if (!payload_) payload_ = std::make_unique<Payload>();
  TRY(sys::receive_exact(urgent_fd_, {payload_->bytes, header.payload_bytes}));
  return deliver(header.space, run, payload_->bytes);
}

Result<void> Pager::read_events(View& view) {
  while (!view.dead) {
    uffd_msg message;
    uffd_msg* slot = log_ ? log_->slot(view.index) : nullptr;
    if (!TRY(sys::uffd_read_into(view.uffd, slot != nullptr ? *slot : message))) return {};
    if (slot != nullptr) {
      message = *slot;
      if (message.event != UFFD_EVENT_PAGEFAULT) log_->keep();
    }
    TRY(handle(view, message));
  }
  return {};
}

Result<void> Pager::handle(View& view, const uffd_msg& message) {
  switch (message.event) {
    case UFFD_EVENT_PAGEFAULT:
      return on_fault(view, message.arg.pagefault.address / page_bytes);
    case UFFD_EVENT_FORK: {
      UniqueFd child(static_cast<int>(message.arg.fork.ufd));
      // Unheld, our death would fill its missing pages with zeros.
      if (keeper_.hold)
        if (Result<void> held = keeper_.hold(fork_tag(forks_), child.get()); !held.ok())
          LOG(error, "a forked child's faults have no keeper: {}", held.error().what());
      add_child(view, std::move(child));
      return {};
    }
    case UFFD_EVENT_REMAP:
      on_remap(view, message.arg.remap.from, message.arg.remap.to, message.arg.remap.len);
      return {};
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
      forget(view, message.arg.remove.start / page_bytes,
             (message.arg.remove.end - message.arg.remove.start) / page_bytes);
      return {};
    default:
      return make_error(Errc::internal, "userfaultfd event {:#x}", message.event);
  }
}

void Pager::add_child(const View& parent, UniqueFd uffd) {
  ++forks_;
  View child;
  child.space = parent.space;
  child.index = views_.size();
  child.owned = std::move(uffd);
  child.uffd = child.owned.get();
  child.missing = parent.missing;
  child.moved = parent.moved;
  left_ += child.missing.count();
  views_.push_back(std::move(child));
}

Result<void> Pager::on_fault(View& view, std::uint64_t page) {
  if (!view.missing.contains(page)) {
    ++counters_.faults_zero;
    const sys::UffdProgress progress = sys::uffd_zeropage(view.uffd, page * page_bytes, page_bytes);
    if (progress.stopped_by == ESRCH) end_view(view);
    // Filled meanwhile, or its mapping is changing: the thread looks again.
    if (progress.stopped_by != 0) sys::uffd_wake(view.uffd, page * page_bytes, page_bytes);
    return {};
  }
  // Several threads may wait for one page.
  if (!asked_us_.emplace(fault_key(view.space, page), monotonic_us()).second) return {};
  ++counters_.faults;
  requests_.run(wire::FrameType::request, view.space,
                {.page = view.moved.source_of(page), .pages = 1});
  return requests_.flush();
}

void Pager::forget(View& view, std::uint64_t page, std::uint64_t pages) {
  const std::uint64_t gone = view.missing.count(page, pages);
  if (gone == 0) return;
  view.missing.remove(page, pages);
  left_ -= gone;
  if (left_ == 0) changed_.notify_all();
}

void Pager::end_view(View& view) {
  view.dead = true;
  forget(view, 0, 1ull << 52);
}

void Pager::on_remap(View& view, std::uint64_t from, std::uint64_t to, std::uint64_t bytes) {
  const std::uint64_t first = from / page_bytes, pages = bytes / page_bytes;
  const std::uint64_t target = to / page_bytes;
  const PageSet moving = view.missing.within(first, pages);
  view.moved.move(view.missing, first, target, pages);
  ++view.moves;
  forget(view, first, pages);
  forget(view, target, pages);
  moving.for_each_run([&](const PageRun& run) {
    view.missing.add(run.page - first + target, run.pages);
    left_ += run.pages;
  });
}

Result<void> Pager::deliver(SpaceId space, const PageRun& run, const std::byte* data) {
  const bool urgent = std::this_thread::get_id() == thread_.get_id();
  for (std::uint64_t done = 0; done < run.pages; done += piece_pages) {
    const PageRun piece{.page = run.page + done, .pages = std::min(piece_pages, run.pages - done)};
    const std::byte* from = data == nullptr ? nullptr : data + done * page_bytes;
    if (!urgent)
      while (urgent_waiting_ != 0) ::sched_yield();
    std::optional<UrgentLock> urgent_lock;
    std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
    if (urgent)
      urgent_lock.emplace(*this);
    else
      lock.lock();
    counters_.pages_received += piece.pages;
    // A fork's event read on the way appends a view that lacks the same pages.
    for (View& view : views_)
      if (view.space == space && !view.dead) TRY(deliver_to(view, piece, from));
  }
  return {};
}

Result<void> Pager::deliver_to(View& view, const PageRun& run, const std::byte* data) {
  auto at = [&](std::uint64_t index) {
    return data == nullptr ? nullptr : data + index * page_bytes;
  };
  if (view.moved.empty()) {
    if (TRY(copy(view, run.page, run.pages, data))) return {};
    // An mremap came in between; what has arrived isn't missing any more.
  }
  // Page by page where mremap has been at work.
  for (std::uint64_t i = 0; i < run.pages;) {
    const std::uint64_t source = run.page + i;
    const std::uint64_t place = view.moved.place_of(source);
    // Else it is gone, and another page stands at its first place.
    const bool there = view.moved.source_of(place) == source;
    if (!there || TRY(copy(view, place, 1, at(i)))) ++i;  // Else once more: it was moved.
  }
  return {};
}

Result<bool> Pager::copy(View& view, std::uint64_t first, std::uint64_t pages,
                         const std::byte* data) {
  std::uint64_t at = first;
  // ENOENT is also what the kernel says of a range that reaches over the end of a mapping, and
  // mappings that lie side by side can be many (madvise, mprotect): then smaller steps.
  std::uint64_t step = pages;
  std::int64_t gone_since_us = 0;
  while (at < first + pages && !view.dead) {
    const PageRun run = view.missing.next_run(at, first + pages - at);
    if (run.pages == 0 || run.page >= first + pages) return true;
    at = run.page;
    const std::uint64_t n = std::min({run.end() - at, first + pages - at, step});
    const sys::UffdProgress progress =
        data == nullptr ? sys::uffd_zeropage(view.uffd, at * page_bytes, n * page_bytes)
                        : sys::uffd_copy(view.uffd, at * page_bytes,
                                         data + (at - first) * page_bytes, n * page_bytes);
    arrived(view, at, progress.bytes / page_bytes);
    at += progress.bytes / page_bytes;
    if (progress.stopped_by != ENOENT) gone_since_us = 0;
    switch (progress.stopped_by) {
      case 0:
        step = std::min(2 * step, pages);
        break;
      case ENOENT:
        if (n > 1) {
          step = 1;
          break;
        }
        // Unmapped or moved away, and the event that says which is on its way: the kernel looks for
        // the mapping before it looks for events (EAGAIN).
        if (gone_since_us == 0) gone_since_us = monotonic_us();
        if (monotonic_us() - gone_since_us > event_limit_us)
          return make_error(Errc::internal, "page {:#x} of space {:#x} is nowhere", at, view.space);
        [[fallthrough]];
      case EAGAIN: {
        // An event is waiting: it may take these pages away, or move them.
        const std::uint64_t moves_before = view.moves;
        TRY(read_events(view));
        if (view.moves != moves_before) return false;
        ::sched_yield();
        break;
      }
      case EEXIST:  // There already.
        sys::uffd_wake(view.uffd, at * page_bytes, page_bytes);
        arrived(view, at, 1);
        ++at;
        break;
      case ESRCH:  // Exited or executed another program.
        end_view(view);
        break;
      default:
        return os_error(fmt::format("UFFDIO_COPY(space={:#x}, {:#x})", view.space, at * page_bytes),
                        progress.stopped_by);
    }
  }
  return true;
}

void Pager::arrived(View& view, std::uint64_t page, std::uint64_t pages) {
  if (pages == 0) return;
  if (!asked_us_.empty()) {
    for (std::uint64_t p = page; p < page + pages; ++p) {
      auto asked = asked_us_.find(fault_key(view.space, p));
      if (asked == asked_us_.end()) continue;
      if (fault_us_.size() < fault_times_max)
        fault_us_.push_back(static_cast<std::uint32_t>(monotonic_us() - asked->second));
      asked_us_.erase(asked);
    }
  }
  forget(view, page, pages);
}

Result<void> Pager::wait_complete(std::int64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  const bool done = changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                                      [this] { return left_ == 0 || error_; });
  if (left_ == 0) return {};
  if (error_) return *error_;
  INVARIANT(!done, "woke up without a reason");
  return make_error(Errc::timeout, "{} pages are missing after {} ms", left_, timeout_ms);
}

Result<void> Pager::unregister() {
  UrgentLock lock(*this);
  INVARIANT(left_ == 0, "{} pages are missing", left_);
  // A successor that copied again would find no registered area, and wait for an event that tells
  // where it went.
  if (log_) log_->mark_complete();
  for (View& view : views_) {
    if (view.dead) continue;
    if (view.index >= served_.size()) {
      if (keeper_.drop) continue;  // Held elsewhere too, until release().
      view.dead = true;
      view.owned.reset();  // The last descriptor: unregisters, and lets go of everybody.
      continue;
    }
    // Its events are read on until the end: a thread in munmap may wait for us right now.
    Result<MapsView> maps = read_areas(served_.at(view.space));
    if (!maps.ok() && maps.error().code() == Errc::tracee_gone) continue;
    if (!maps.ok()) return std::move(maps).error();
    // Many at once, with the gaps behind them: an area that grows just now would else be split into
    // a registered half and another, and mremap(2) refuses to span the two. Areas that came since
    // aren't registered, or go away under us: both are fine. Whatever would be left is let go when
    // the last descriptor closes.
    for (const AreaGroup& group : group_areas(*maps)) {
      if (!group.anonymous || sys::uffd_unregister(view.uffd, group.start, group.ceiling).ok())
        continue;
      for (const Area& area : maps->content)
        if (area.start >= group.start && area.end <= group.end)
          (void)sys::uffd_unregister(view.uffd, area.start, area.end);
    }
  }
  return {};
}

Result<void> Pager::release() {
  if (!keeper_.drop) return {};
  UrgentLock lock(*this);
  for (View& view : views_) {
    if (view.index < served_.size()) continue;
    view.dead = true;
    view.owned.reset();
  }
  for (std::uint64_t fork = 0; fork < forks_; ++fork) TRY(keeper_.drop(fork_tag(fork)));
  for (const auto& [space, pid] : served_) TRY(keeper_.drop(fault_tag(space)));
  return keeper_.drop(fault_log_tag);
}

PagerStats Pager::stats() const {
  std::lock_guard lock(mutex_);
  PagerStats out = counters_;
  out.pages_left = left_;
  std::vector<std::uint32_t> sorted = fault_us_;
  std::sort(sorted.begin(), sorted.end());
  if (!sorted.empty()) {
    out.fault_p50_us = sorted[sorted.size() / 2];
    out.fault_p99_us = sorted[sorted.size() * 99 / 100];
    out.fault_max_us = sorted.back();
  }
  return out;
}

}  // namespace godwit::memory
