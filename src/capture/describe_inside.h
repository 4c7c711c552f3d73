// What only the process itself can tell, asked by injected calls, and what ptrace tells of its
// threads.
#pragma once

#include "capture/freeze.h"
#include "image/image.pb.h"

namespace godwit::capture {

// Preconditions: `out` holds what /proc told (describe.cc); threads in the order of
// process.threads.
Result<void> describe_inside(FrozenTree& tree, FrozenProcess& process, image::Process& out);

}  // namespace godwit::capture
