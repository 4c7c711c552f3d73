// The target's side of one migration: shell, skeletons, pages, grant.
#pragma once

#include "base/node_env.h"
#include "migrate/report.h"
#include "wire/worker.pb.h"

namespace godwit::migrate {

// Like run_source. Outcome MOVED: the capsule runs here. FAILED: nothing of it is left here, and
// the refusal is on record.
wire::Report run_target(const NodeEnv& env, const wire::TargetOrder& order, EventSink& sink);

}  // namespace godwit::migrate
