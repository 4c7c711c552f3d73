// Rebuilds the processes of an image in a capsule's shell on the target node.
//
//   Restorer restorer = TRY(Restorer::create(source));
//   restorer.align_clocks(...)         as soon as the source knows how the clocks differ
//   restorer.prepare(image so far)     any number of times, the program still runs on the source
//     ... pages are written through space() ...
//   restorer.prepare_final(image)      frozen on the source: what changed since; then the last
//   pages restorer.finish(image, ...)        everything else; the threads stand in ptrace stops
//   restorer.seal()                    from here our death leaves the tree held by its frozen
//   cgroup restorer.start()                   after the grant: detach, thaw
//
// Preconditions: one thread calls everything (it becomes the tracer). Destroying the restorer
// before start() kills the skeletons.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "image/image.pb.h"
#include "restore/skeleton_source.h"
#include "sys/interrupted_sleep.h"

namespace godwit::restore {

// Where the content of a space goes (docs/ENGINE.md, "spaces"). Descriptors are borrowed and hold
// until start() or the end of the restorer.
struct SpaceTarget {
  pid_t node_pid = -1;  // Processes.
  int mem_fd = -1;      // /proc/PID/mem, O_RDWR.
  int file_fd = -1;     // Private files: O_RDWR, nothing else is set then.
};

struct MemoryRange {
  std::uint64_t start = 0, end = 0;
};

class Restorer {
 public:
  static Result<Restorer> create(SkeletonSource& source);  // Borrows it.
  Restorer(Restorer&&) noexcept;
  Restorer& operator=(Restorer&&) = delete;
  ~Restorer();

  // What the capsule's clocks show minus what this node's show. Found out by messages, so it may be
  // wrong by some microseconds; if the capsule's clocks are behind, finish() waits that out, so the
  // program never sees them go back. Without this call the time namespace is made by finish(), and
  // so must be all threads (85 us each): early is better.
  Result<void> align_clocks(std::int64_t monotonic_delta_ns, std::int64_t boottime_delta_ns);

  // Skeletons, private files, mappings, threads. Only differences to the last call cost.
  Result<void> prepare(const image::Capsule& so_far);
  // The same for the final image, which must stay where it is until finish.
  Result<void> prepare_final(const image::Capsule& final);

  Result<SpaceTarget> space(std::uint32_t id);
  // A new userfaultfd of the process, raw: UFFDIO_API not called yet. For missing pages and copies;
  // not for events, which would stop the next prepare.
  Result<UniqueFd> make_userfaultfd(std::uint32_t id, int flags);
  // Makes pages of a process absent again. In pieces: others get the processor in between; else it
  // is done in the least time.
  Result<void> drop_pages(std::uint32_t id, std::span<const MemoryRange> ranges, bool in_pieces);

  // Post-copy: what finish() makes the kernel touch (rseq areas, arguments of calls to restart) and
  // what it populates (locked areas): these pages must have arrived before finish().
  static std::vector<MemoryRange> pages_needed(const image::Process& process);

  // Preconditions: all content of private files has arrived; relay state is loaded (pipes filled).
  // `frozen_ns`: how long ago the image's times were read, by this node's clock (a lower bound).
  Result<void> finish(const image::Capsule& final, std::int64_t frozen_ns);
  Result<void> seal();
  Result<void> start();

  // After start(): the sleeps that threads go on with, for the next freeze.
  const std::vector<sys::InterruptedSleep>& sleeps() const;

  // What couldn't be restored exactly, in words; complete after finish().
  const std::vector<std::string>& notes() const;
  // The restored processes as this node sees them: (pid in the capsule, node's pid).
  std::vector<std::pair<pid_t, pid_t>> processes() const;

 private:
  struct Impl;
  explicit Restorer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace godwit::restore
