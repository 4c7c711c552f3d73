// The target's half of moving memory: what arrives on the streams is put into skeletons and files.
//
//   TargetMemory memory({.lookup = ..., .drop = ...});
//   memory.add_stream(fd)                   each data connection; a pair of threads starts
//   loop: restorer.prepare(image); memory.forget_targets();
//         source told of a round -> memory.wait_round(n, timeout)   acknowledges to the source
//   post-copy: restorer.finish(...), memory.start_pager(urgent fd), seal, grant, start,
//              memory.wait_drained(timeout)
//
// Threads: everything is called by one thread (the one that traces the skeletons, since `drop`
// is called on it by wait_round); pager_stats by any. `lookup` is called on receiving threads, one
// call at a time, only between the begin of a round and the end of its wait_round: it must not
// ptrace. Cancelling: shutdown(2) of the sockets.
//
// Pages reach a target by one of three ways, chosen per area (src/memory/space_writer.h):
// UFFDIO_COPY through `copy_uffd` (fresh 4K pages: fastest), process_vm_writev (pages that are
// there, fresh huge pages), /proc/PID/mem (read-only and PROT_NONE mappings).
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memory/page_set.h"
#include "memory/types.h"

namespace godwit::memory {

// Descriptors are borrowed: they stay open until forget_targets() or the end of TargetMemory.
struct SpaceTarget {
  pid_t pid = -1;   // Of the skeleton, as this node sees it.
  int mem_fd = -1;  // /proc/PID/mem, O_RDWR.
  // A raw userfaultfd of the skeleton (no UFFDIO_API yet), or -1. Used during the first round and
  // unregistered after it; registers areas that then cannot merge, so pages only go through it
  // where they are many. -1 costs speed, nothing else.
  int copy_uffd = -1;
  // Another raw one for post-copy, or -1 if this migration can't become one. Full, not
  // USER_MODE_ONLY. Keep a duplicate somewhere that outlives the worker: when the last descriptor
  // closes, missing pages read as zeros.
  int fault_uffd = -1;
  std::vector<Area> areas;  // What is mapped, as content_areas() of the prepared image.

  int file_fd = -1;  // Spaces of private files: the file, O_RDWR. Nothing else is set then.
};

struct ReceivedRound {
  std::uint64_t round = 0;
  std::uint64_t pages = 0;
  std::uint64_t bytes = 0;
  std::uint64_t frames = 0;
  std::uint64_t pages_dropped = 0;
  std::uint64_t pages_pending = 0;  // Known to be missing, so far (all rounds).
  std::int64_t drop_us = 0;
};

struct PagerStats {
  std::uint64_t faults = 0;       // Asked the source for.
  std::uint64_t faults_zero = 0;  // Never populated on the source: zero page at once.
  std::uint64_t pages_left = 0;
  std::uint64_t pages_received = 0;
  std::int64_t fault_p50_us = 0;  // From reading the fault to waking the program.
  std::int64_t fault_p99_us = 0;
  std::int64_t fault_max_us = 0;
};

// Tag of a space's fault_uffd at a keeper.
std::string fault_tag(SpaceId space);

class TargetMemory {
 public:
  using Lookup = std::function<Result<SpaceTarget>(SpaceId space)>;
  // Makes these pages of a process absent again: madvise(MADV_DONTNEED) injected into the skeleton
  // (no call does it from outside). Runs of unmapped pages are to be ignored. Called by
  // wait_round. Without it the pages are overwritten by zeros, which is right for pages that are
  // gone, costs memory, and cannot do for post-copy (wait_round then fails).
  using Drop = std::function<Result<void>(SpaceId space, std::span<const PageRun> runs)>;

  struct Options {
    Lookup lookup;
    Drop drop;
    // From what CPU time for a fresh huge page on pages are copied one by one (space_writer.h). 0:
    // the default.
    std::int64_t huge_page_us_max = 0;
    // Asked before so many bytes are written, on receiving threads; an error ends the migration.
    // For a node whose memory ends: the kernel's own answer kills, and not only the copy.
    std::function<Result<void>(std::uint64_t bytes)> room = {};
  };
  explicit TargetMemory(Options options);
  ~TargetMemory();  // Shuts the streams down and joins the threads. A pager that runs leaves faults
                    // blocked: nothing is ever filled with zeros because a link was lost.
  TargetMemory(const TargetMemory&) = delete;
  TargetMemory& operator=(const TargetMemory&) = delete;

  Result<void> add_stream(int fd);  // Borrowed; must be a connected socket.
  // After each prepare: what is mapped has changed, look targets up again. Called between rounds.
  void forget_targets();

  // Until round n is complete on every stream and in place; then the source is told. Fails with
  // peer_lost, timeout, or what a writer met.
  Result<ReceivedRound> wait_round(std::uint64_t round, std::int64_t timeout_ms);

  // Runs known to be missing (last_postcopy), in order. For checks and the image.
  std::vector<PageRun> pending_runs(SpaceId space) const;

  // Descriptors that must outlive this process are held by somebody else under a tag. All three or
  // none; called on the pager's thread and by whoever calls start_pager, wait_drained and release.
  struct Keeper {
    std::function<Result<void>(const std::string& tag, int fd)> hold;
    std::function<Result<UniqueFd>(const std::string& tag)> fetch;
    std::function<Result<void>(const std::string& tag)> drop;
  };

  // Registers the areas with missing pages and serves faults. Call after the last round and after
  // the last change of mappings, before the program runs. The skeletons must not have been dropped
  // from: every pending page is absent.
  // With a keeper: `fault_uffd` is held as fault_tag(space), and a log of events, so that another
  // process can go on after the death of this one.
  Result<void> start_pager(int urgent_fd, Keeper keeper = {});
  // Goes on after the pager that started with this keeper has died. `pids`: of the spaces, as this
  // node sees them; absent ones have ended. Errc::unsupported, invalid: it can't be done.
  Result<void> resume_pager(int urgent_fd, Keeper keeper, const std::map<SpaceId, pid_t>& pids);
  // After it: what the source has to send, as it numbers it.
  std::map<SpaceId, PageSet> missing_at_source() const;
  // Until no page is missing; acknowledges to the source as a round and unregisters. After it close
  // every duplicate of fault_uffd, then destroy TargetMemory: until its end it reads events, for
  // which the program's munmap and fork would wait.
  // peer_lost: faults stay blocked; the caller decides (see docs/ENGINE.md). timeout: may be called
  // again.
  Result<PagerStats> wait_drained(std::uint64_t round, std::int64_t timeout_ms);
  // Lets go of what the keeper holds: no successor is needed any more.
  Result<void> release_pager();
  // The same, for a process that died before it did.
  static Result<void> release_held(const Keeper& keeper);
  PagerStats pager_stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace godwit::memory
