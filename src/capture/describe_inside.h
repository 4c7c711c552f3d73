// What only the process itself can tell, asked by injected calls, and what ptrace tells of its
// threads.
#pragma once

#include "capture/describe_files.h"
#include "capture/freeze.h"
#include "image/image.pb.h"

namespace godwit::capture {

// Preconditions: `out` holds what /proc told (describe.cc); threads in the order of
// process.threads.
Result<void> describe_inside(FrozenTree& tree, FrozenProcess& process, image::Process& out);

// Leaves the arena mapped; describe_inside unmaps it.
Result<std::vector<OwnLook>> look_at_fds(FrozenTree& tree, FrozenProcess& process,
                                         std::span<const int> fds);

// Of a process that a signal has stopped (all numbers the capsule's): whether its parent has been
// told so by wait(2), or would be. Asks the parent; true where that isn't in the tree.
Result<bool> is_stop_waited_for(FrozenTree& tree, pid_t parent, pid_t stopped);

}  // namespace godwit::capture
