// Objects of a capsule's IPC namespace, which no descriptor and no mapping has to show.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/result.h"

namespace godwit::capture {

// One reason for each System V segment, semaphore set and queue, and for each POSIX message queue
// with a name.
Result<std::vector<std::string>> ipc_reasons(pid_t init_pid);

}  // namespace godwit::capture
