// The state behind SourceMemory, shared by its two files. Internal to memory.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <optional>

#include "memory/dirty_tracker.h"
#include "memory/page_sender.h"
#include "memory/source_memory.h"

namespace godwit::memory {

struct ProcessSpace {
  pid_t pid = -1;
  std::unique_ptr<DirtyTracker> tracker;  // Always one, if only that of kind none.
  std::string tracker_reason;             // Why not a better one.
  std::unique_ptr<ProcessSource> source;
  bool harvested = false;
  PageSet at_target;                        // The target has content of these (perhaps old).
  PageSet todo;                             // The target lacks the present content of these.
  PageSet pending;                          // Announced for post-copy; disjoint from at_target.
  std::optional<std::vector<Area>> layout;  // Of the target's skeleton.
  std::optional<MapsView> frozen;           // Its mappings, once it stands still.
};

struct FileSpace {
  explicit FileSpace(UniqueFd fd) : source(std::move(fd)) {}
  FileSource source;
};

struct SourceMemory::Impl {
  Options options;
  std::map<SpaceId, ProcessSpace> processes;
  std::map<SpaceId, std::unique_ptr<FileSpace>> files;
  std::deque<std::uint64_t> acks_due;  // Rounds sent and not yet acknowledged.
  std::atomic<std::uint64_t> pages_pending{0};
};

// Reads the acknowledgement of `round` from one stream.
Result<void> read_ack(int stream, std::uint64_t round, std::int64_t timeout_ms);

}  // namespace godwit::memory
