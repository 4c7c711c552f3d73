// Small tasks of the engine besides a migration's two sides.
#pragma once

#include "base/node_env.h"
#include "wire/worker.pb.h"

namespace godwit::migrate {

// After the death of a source worker: contexts clean, thawed, relayed again; or destroyed.
wire::Report run_recover(const NodeEnv& env, const wire::RecoverOrder& order);

// `godwit freeze`, `godwit thaw`. The program must not see either, so plain cgroup writes won't do:
// a frozen call like epoll_wait would return EINTR.
wire::Report run_freeze(const NodeEnv& env, const wire::FreezeOrder& order);

// `godwit can-migrate`: every reason against.
wire::Report run_check(const NodeEnv& env, const wire::CheckOrder& order);

}  // namespace godwit::migrate
