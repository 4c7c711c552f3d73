// The capsule's init holds what a pager's successor needs: when the last descriptor of a
// userfaultfd closes, missing pages read as zeros, so the death of a worker must not be that.
#pragma once

#include "base/ids.h"
#include "base/node_env.h"
#include "memory/target_memory.h"

namespace godwit::migrate {

// Over a connection of its own: the pager's thread uses it beside the worker's.
Result<memory::TargetMemory::Keeper> fault_keeper(const NodeEnv& env, const CapsuleId& id);

}  // namespace godwit::migrate
