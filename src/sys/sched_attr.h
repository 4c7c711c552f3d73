// struct sched_attr in its first version, which every kernel takes; its own header,
// uapi/linux/sched/types.h, clashes with <sched.h>.
#pragma once

#include <cstdint>

namespace godwit::sys {

struct SchedAttr {
  std::uint32_t size = sizeof(SchedAttr);
  std::uint32_t policy = 0;
  std::uint64_t flags = 0;
  std::int32_t nice = 0;  // Taken and told for SCHED_OTHER and SCHED_BATCH alone.
  std::uint32_t priority = 0;
  std::uint64_t runtime = 0;  // Nanoseconds; for SCHED_OTHER its slice, from 6.12 on.
  std::uint64_t deadline = 0, period = 0;
};
static_assert(sizeof(SchedAttr) == 48);

}  // namespace godwit::sys
