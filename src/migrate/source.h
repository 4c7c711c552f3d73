// The source's side of one migration, from preflight to release.
#pragma once

#include "base/node_env.h"
#include "migrate/report.h"
#include "wire/worker.pb.h"

namespace godwit::migrate {

// Never fails: what went wrong is in the report, with where the capsule now runs. Call on the
// thread that shall trace; it does everything on this thread.
wire::Report run_source(const NodeEnv& env, const wire::SourceOrder& order, EventSink& sink);

}  // namespace godwit::migrate
