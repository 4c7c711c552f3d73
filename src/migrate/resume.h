// The rest of a post-copy drain whose workers were lost (docs/ENGINE.md, "commit and doubt").
#pragma once

#include "base/node_env.h"
#include "migrate/report.h"

namespace godwit::migrate {

// Source: a page server over the tree that is frozen for good. MOVED: released. IN_DOUBT: the link
// was lost again, everything is as before.
wire::Report run_serve(const NodeEnv& env, const wire::ServeOrder& order, EventSink& sink);

// Target: a pager in place of the dead one. MOVED: every page is here. IN_DOUBT: faults wait on.
// LOST: what the dead one left can't be gone on with; the capsule is killed, no page of it was
// ever filled with zeros.
wire::Report run_resume(const NodeEnv& env, const wire::ResumeOrder& order, EventSink& sink);

}  // namespace godwit::migrate
