// The source's half of moving memory: which pages the target lacks, and sending them.
//
// Use, in order (one thread; it may be any, tracing or not):
//
//   SourceMemory memory({});
//   memory.add_process(space, pid) / memory.add_file(space, fd)     every content space
//   memory.arm(maker)                       pre-copy and hybrid only; the program runs
//   loop, the program runs:
//     image -> target prepares -> memory.set_target_layout(space, content_areas(mm))
//     memory.send_round(streams, {.round = n, .kind = RoundKind::precopy})
//   hybrid only, the program runs:
//     memory.send_round(streams, {.round = n, .kind = RoundKind::announce})
//   freeze; add what is new, remove_space what is gone, set_target_layout from the final image
//     memory.send_round(streams, {.round = n, .kind = RoundKind::last})            stop, pre-copy
//     memory.send_round(streams, {.round = n, .kind = RoundKind::last_postcopy})   post-copy,
//     hybrid
//   post-copy after the grant: memory.serve(urgent, streams)
//
// `stop` is: add, freeze, set_target_layout, one round `last`. Without arm() every round sends all.
//
// Streams are connected sockets, borrowed. Cancelling from another thread: shutdown(2) of the
// sockets; whatever runs here then returns Errc::peer_lost.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memory/page_set.h"
#include "memory/types.h"

namespace godwit::memory {

enum class RoundKind {
  precopy,        // Send what is dirty. The program may run.
  announce,       // Send nothing but which pages the target must forget (hybrid). May run.
  last,           // Frozen: send all that is left.
  last_postcopy,  // Frozen: private anonymous pages that are left are announced, all else is sent.
};

struct RoundStats {
  std::uint64_t round = 0;
  std::uint64_t pages = 0;            // Sent as data.
  std::uint64_t bytes = 0;            // On the wire, headers included.
  std::uint64_t pages_zero = 0;       // Read, found zero, not sent.
  std::uint64_t pages_dropped = 0;    // Told to the target as gone.
  std::uint64_t pages_pending = 0;    // Announced for post-copy, so far (all rounds).
  std::uint64_t pages_held_back = 0;  // In areas which the target doesn't have yet.
  std::int64_t harvest_us = 0;        // Finding out.
  std::int64_t send_us = 0;           // Reading and sending, until the last byte is in the socket.
  std::int64_t ack_us = 0;            // From there until the target had everything in place.
  std::vector<SpaceId> spaces_gone;   // Processes that ended; their spaces are removed.
};

struct RoundOptions {
  std::uint64_t round = 0;  // Rising.
  RoundKind kind = RoundKind::last;
  // How long the target may take to write after everything was sent. 0: don't wait (the next
  // call that needs the stream waits then); for `last`, so that the image can follow at once.
  std::int64_t ack_timeout_ms = 60'000;
  // last_postcopy: sent as data all the same. Bytes, page-aligned outwards; for what the program
  // touches in its first microseconds (stack tops, TLS, rseq).
  struct Range {
    SpaceId space;
    std::uint64_t start, end;
  };
  std::vector<Range> eager;
};

struct Tracking {
  TrackerKind kind = TrackerKind::none;
  std::string reason;  // Why not a better one; empty with uffd_wp.
};

struct DirtyEstimate {
  std::uint64_t pages = 0;  // Would be sent or announced by a round now.
  std::int64_t us = 0;      // What asking has cost.
};

struct DrainStats {
  std::uint64_t pages_pushed = 0;
  std::uint64_t pages_requested = 0;  // Answered on the urgent link.
  std::uint64_t pages_neighbour = 0;  // Pushed because a neighbour was asked for.
  std::uint64_t pages_zero = 0;
  std::uint64_t bytes = 0;
  std::int64_t us = 0;
};

class SourceMemory {
 public:
  struct Options {
    bool track = true;  // false: as if the kernel had no tracker.
    // Stops (true) and continues (false) the tree for a moment. Only soft-dirty tracking needs it;
    // without it that isn't used.
    std::function<Result<void>(bool stop)> pause;
  };
  explicit SourceMemory(Options options);
  ~SourceMemory();  // Disarms: closes the userfaultfds. The program never notices.
  SourceMemory(const SourceMemory&) = delete;
  SourceMemory& operator=(const SourceMemory&) = delete;

  // `pid` as this node sees it. Adding twice is an error; remove first.
  Result<void> add_process(SpaceId space, pid_t pid);
  // The content of a private file: regular, memfd, shared memory. The size is read in each round.
  Result<void> add_file(SpaceId space, UniqueFd fd);
  // Gone: nothing more is sent of it. The target learns it from the image, not from here.
  void remove_space(SpaceId space);
  bool has_space(SpaceId space) const;

  // Starts tracking for every process that isn't tracked yet; may be called again after
  // add_process, and before each round: costs nothing where nothing changed, and resumes tracking
  // after an execve. The maker is called once for each process. Not being able to track is no
  // error: the answer says so (the least of all processes), and rounds of that process send
  // everything.
  Result<Tracking> arm(const UffdMaker& maker);
  // Stops tracking; the program's mappings merge again. (The destructor does it too.)
  void disarm();

  // Which areas the target's skeleton now has in this process. Pages elsewhere are held back until
  // it has. Where an area's content identity differs from the previous layout, the target has
  // thrown its pages away, and they are sent again. If never called: everything is sent.
  void set_target_layout(SpaceId space, std::vector<Area> areas);

  // The process stands still and was described: the last round believes this instead of reading
  // /proc/PID/maps once more (3.5 ms for 10,000 mappings).
  void set_frozen_layout(SpaceId space, const image::Mm& mm);

  Result<RoundStats> send_round(std::span<const int> streams, const RoundOptions& options);
  // Waits until the target has everything of `round` in place.
  Result<void> await_ack(std::span<const int> streams, std::uint64_t round,
                         std::int64_t timeout_ms);

  // Without changing anything: how much the program has dirtied since the last round. Private
  // files aren't counted: only reading them tells.
  Result<DirtyEstimate> estimate_dirty();

  // Post-copy, after last_postcopy: answers requests on `urgent`, pushes the rest on `streams`.
  // Returns when the target has said that nothing is missing any more. `round`: a fresh number.
  // On failure the streams are shut down: they are of no use any more.
  Result<DrainStats> serve(int urgent, std::span<const int> streams, std::uint64_t round);
  // Before serve(), of a tree that another process froze and announced: what the target lacks.
  // Errc::tracee_gone: there is no such space.
  Result<void> set_pending(SpaceId space, const PageSet& missing);
  std::uint64_t pages_pending() const;  // Any thread.

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace godwit::memory
