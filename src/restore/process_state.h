// The state of a process that its leader sets for all threads, as calls of batches.
#pragma once

#include "image/image.pb.h"
#include "restore/open_files.h"
#include "restore/skeleton.h"
#include "restore/thread_state.h"

namespace godwit::restore {

// What can be done (cheaply: registering costs an RCU grace period once there are threads) before
// the freeze. `done` remembers registrations.
Result<void> register_membarrier(Skeleton& skeleton, std::uint32_t want, std::uint32_t& done);

// argv, environment, brk, auxv, /proc/self/exe; cwd, root, umask; handlers; flags of the process.
// Needs threads to exist (timers name them). `clocks`: when the image's times were read;
// `frozen_ns`: how long ago that is.
Result<void> restore_process(Skeleton& skeleton, const image::Process& process,
                             const image::Clocks& clocks, const OpenFiles& files,
                             std::int64_t frozen_ns, Notes& notes);

// Into the leader's last batch, around its own state: before and after its credentials.
void add_shared_pending(Batch& batch, const image::Process& process);
Result<void> add_limits(Batch& batch, const Skeleton& skeleton, const image::Process& process,
                        std::uint64_t capabilities, Notes& notes);
void add_after_credentials(Batch& batch, const image::Process& process, Notes& notes);

// The one handler that a batch can't set; see skeleton.h. Before the traces are removed.
Result<void> ignore_sigtrap(Skeleton& skeleton, const image::Process& process);

// Written by us in /proc: oom_score_adj, coredump_filter, autogroup.
Result<void> write_proc_files(pid_t node_pid, const image::Process& process, Notes& notes);

}  // namespace godwit::restore
