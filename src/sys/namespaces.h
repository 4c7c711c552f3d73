// Namespaces of other processes, used without leaving one's own.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace godwit::sys {

// /proc/PID/ns/KIND: "net", "time_for_children", ...
Result<UniqueFd> open_namespace(pid_t pid, const std::string& kind);

// A socket belongs for good to the network namespace it was made in; this one is made in `netns`.
// Runs a short-lived thread, so that no thread of the caller ever changes its namespace.
Result<UniqueFd> socket_in_netns(int netns, int family, int type, int protocol);

// What the time namespace of this process's children adds to the clocks of the machine's initial
// one.
struct TimeOffsets {
  std::int64_t monotonic_ns = 0;
  std::int64_t boottime_ns = 0;
};
Result<TimeOffsets> time_offsets_of(pid_t pid);

// The process behind a pidfd as this process's PID namespace numbers it; Errc::tracee_gone once
// reaped.
Result<pid_t> pid_of_pidfd(int pidfd);

}  // namespace godwit::sys
