// How much memory this node has left while a capsule arrives. What the source reported at its
// reservation isn't the end of it: programs grow, here and there. When a node's memory ends, the
// kernel kills: the copy first (its oom_score_adj is 1000), but memory that a writer of ours holds
// just then isn't free at once, and 5 ms later the largest of the node's other programs follows.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>

#include "base/result.h"

namespace godwit::migrate {

class MemoryRoom {
 public:
  // `limit_bytes`: of an emulated node, whose control group is `cgroup`; 0: the machine's memory.
  MemoryRoom(std::string cgroup, std::uint64_t limit_bytes)
      : cgroup_(std::move(cgroup)), limit_bytes_(limit_bytes) {}

  // Before `bytes` are written. Errc::refused: too little is left. Looks (30 us) only when half of
  // what was left at the last look may be gone. Any thread.
  Result<void> take(std::uint64_t bytes);
  // Looks now: for what will be written after there is no way back.
  Result<void> need(std::uint64_t bytes);

 private:
  Result<std::uint64_t> available_bytes() const;

  std::string cgroup_;
  std::uint64_t limit_bytes_;
  std::mutex mutex_;
  std::atomic<std::int64_t> until_look_bytes_{0};
};

}  // namespace godwit::migrate
