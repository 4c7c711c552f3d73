// A thread that somebody's page fault waits for must not queue behind those that copy in bulk, nor
// must the program itself.
#pragma once

namespace godwit::sys {

// Real-time round robin, lowest priority, for the calling thread; else the shortest slice of time,
// as nice as allowed. True if any of it worked. Such a thread must block by itself, soon: it isn't
// preempted by ordinary ones. Threads and processes that it starts are ordinary again.
bool raise_thread_priority();
// Back to that of a thread that copies in bulk (below).
void lower_thread_priority();

// For threads that copy in bulk while programs run: as large a share of the processor as before, in
// slices so short that whoever wakes up beside them doesn't wait for milliseconds. On kernels
// before 6.12 nothing changes. Not inherited either.
void shorten_thread_slice();

}  // namespace godwit::sys
