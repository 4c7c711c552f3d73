// Post-copy on the target: the program runs while pages are missing.
//
// A view is one address space that waits for pages: a skeleton that was restored, or a child that
// it forked since (the kernel hands over a userfaultfd of its own for that). Each keeps the set of
// its pages that are still missing, by the addresses where it has them now, and where they came
// from if mremap moved them.
//
// One rule makes it exact: events are read and pages are copied under one lock. The kernel lets
// go of a thread in munmap, madvise(DONTNEED), mremap or fork when its event is read, and lets no
// copy in from the moment the event is queued until then (EAGAIN). So a copy under the lock is
// either before the event, and is zapped or moved with the rest, or after it, and knows of it. The
// kernel looks for the mapping first: a place that was left answers ENOENT, which says no more than
// that its event is about to come, and is waited for like EAGAIN.
//
// The pager may be killed at any instruction: keepers hold its descriptors, and its successor takes
// them and the log of events over (fault_log.h).
//
// A page that never existed on the source isn't missing: it gets the zero page at once. A missing
// page is never filled with anything but its content, whatever fails.
#pragma once

#include <atomic>
#include <condition_variable>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "memory/fault_log.h"
#include "memory/moved_pages.h"
#include "memory/page_set.h"
#include "memory/space_writer.h"
#include "memory/stream_writer.h"
#include "memory/target_memory.h"
#include "sys/userfaultfd.h"

namespace godwit::memory {

class Pager {
 public:
  struct Space {
    SpaceId id;
    SpaceTarget target;
    PageSet missing;
  };
  Pager(int urgent_fd, TargetMemory::Keeper keeper);
  ~Pager();  // Shuts the urgent link down, joins. Faults that wait go on waiting.
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  // Registers the areas with missing pages, then serves.
  Result<void> start(std::vector<Space> spaces);

  // Instead of start(): goes on where a pager that is dead has left off.
  Result<void> resume(const std::map<SpaceId, pid_t>& pids);
  // What is missing, as the source numbers it.
  std::map<SpaceId, PageSet> missing_at_source() const;

  bool serves(SpaceId space) const { return served_.contains(space); }  // After start().
  // Any thread. Content (or, without data, zeros) of pages of the source's space.
  Result<void> deliver(SpaceId space, const PageRun& run, const std::byte* data);

  // Until nothing is missing, a failure, or the time is up.
  Result<void> wait_complete(std::int64_t timeout_ms);
  void fail(Error error);  // The link is lost: whoever waits is told.
  // Nothing is missing any more: unregisters, so that faults are the kernel's again.
  Result<void> unregister();
  // After unregister(), once it is on record that no successor is needed.
  Result<void> release();
  PagerStats stats() const;

 private:
  struct View {
    SpaceId space = 0;
    std::uint64_t index = 0;  // As the log counts views.
    int uffd = -1;
    UniqueFd owned;  // Of a child.
    PageSet missing;
    MovedPages moved;
    std::uint64_t moves = 0;  // Events that told of one.
    bool dead = false;
  };
  class UrgentLock;
  struct Payload {
    alignas(page_bytes) std::byte bytes[wire::frame_data_pages_max * page_bytes];
  };

  void loop();
  Result<void> receive_urgent();
  Result<void> read_events(View& view);
  Result<void> handle(View& view, const uffd_msg& message);
  void add_child(const View& parent, UniqueFd uffd);
  Result<void> on_fault(View& view, std::uint64_t page);
  void on_remap(View& view, std::uint64_t from, std::uint64_t to, std::uint64_t bytes);
  void forget(View& view, std::uint64_t page, std::uint64_t pages);
  void end_view(View& view);

  Result<void> deliver_to(View& view, const PageRun& run, const std::byte* data);
  // What is missing of these pages of the view. False: mremap moved pages meanwhile, start again.
  Result<bool> copy(View& view, std::uint64_t page, std::uint64_t pages, const std::byte* data);
  void arrived(View& view, std::uint64_t page, std::uint64_t pages);

  mutable std::mutex mutex_;
  std::atomic<int> urgent_waiting_{0};
  std::list<View> views_;
  std::map<SpaceId, pid_t> served_;
  const int urgent_fd_;
  StreamWriter requests_;
  UniqueFd stop_event_;
  bool stopping_ = false;
  TargetMemory::Keeper keeper_;
  std::optional<FaultLog> log_;
  std::uint64_t forks_ = 0;
  std::optional<Error> error_;
  std::condition_variable changed_;
  std::uint64_t left_ = 0;                                    // Missing pages of all views.
  std::unordered_map<std::uint64_t, std::int64_t> asked_us_;  // Fault pages (view's), by space too.
  std::vector<std::uint32_t> fault_us_;
  PagerStats counters_;
  // Of the largest frame; made when the first one comes. As a thread_local it would be cleared at
  // the start of every thread of the process, 0.6 to 1 ms each.
  std::unique_ptr<Payload> payload_;
  std::thread thread_;
};

}  // namespace godwit::memory
