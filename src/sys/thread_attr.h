// What the kernel tells about another thread by its id: scheduling, processors, I/O priority,
// robust futexes.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "base/result.h"

namespace godwit::sys {

struct ThreadAttr {
  std::uint32_t policy = 0;
  std::uint64_t flags = 0;
  std::int32_t nice = 0;
  std::uint32_t rt_priority = 0;
  std::uint64_t dl_runtime = 0, dl_deadline = 0, dl_period = 0;
  std::vector<std::uint32_t> affinity;  // Empty: all processors that are online.
  std::uint32_t ioprio = 0;
  std::uint64_t robust_list = 0, robust_list_len = 0;
};

Result<ThreadAttr> read_thread_attr(pid_t tid);

// The cookie of core scheduling; 0: none, or the kernel has no core scheduling.
Result<std::uint64_t> read_core_cookie(pid_t tid);

}  // namespace godwit::sys
