// A thread that somebody's page fault waits for must not queue behind those that copy in bulk.
#pragma once

namespace godwit::sys {

// Real-time round robin, lowest priority, for the calling thread; else the shortest slice of time,
// as nice as allowed. True if any of it worked. Such a thread must block by itself, soon: it isn't
// preempted by ordinary ones. Threads and processes that it starts are ordinary again.
bool raise_thread_priority();

}  // namespace godwit::sys
