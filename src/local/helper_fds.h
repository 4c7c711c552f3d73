// Descriptors that the library hands to godwit-node, and the answer it expects.
#pragma once

namespace godwit::local {

inline constexpr int lock_fd = 3;          // The cluster's lock: closed once in the cgroup.
inline constexpr int report_fd = 4;        // A pipe: helper_ok, or an error in words; then closed.
inline constexpr int switch_netns_fd = 5;  // boot only.
inline constexpr const char* helper_ok = "ok";

}  // namespace godwit::local
