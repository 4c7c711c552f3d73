// The state of one thread that only the thread itself can set, as calls of a batch.
//
// Order matters, and is the order of these functions: what needs privilege comes before the
// credentials. Seccomp filters are installed while they are suspended (PTRACE_O_SUSPEND_SECCOMP),
// so they may come early too: without no_new_privs installing one takes CAP_SYS_ADMIN, which the
// credentials take away.
#pragma once

#include <sched.h>

#include <string>
#include <vector>

#include "image/image.pb.h"
#include "restore/remote_batch.h"

namespace godwit::restore {

// What couldn't be restored exactly and doesn't stop the program from running well; shown to
// people.
using Notes = std::vector<std::string>;

struct ThreadContext {
  const image::Process& process;
  const image::Thread& thread;
  int seccomp_shared;          // That many filters are there already (set for all threads at once).
  const cpu_set_t& cpus;       // Of the target.
  std::uint64_t cap_bounding;  // Of the skeleton.
};

Result<void> add_thread_state(Batch& batch, const ThreadContext& context, Notes& notes);
// A signal of a periodic timer that the program hasn't taken yet isn't queued again: the timer is
// armed as of its first expiry that wasn't seen, fires at once, and counts from there. The answer
// is that timer, or null for every other signal.
const image::PosixTimer* timer_behind(const image::Process& process, const std::string& siginfo);

void add_pending_signals(Batch& batch, const ThreadContext& context);
Result<void> add_credentials(Batch& batch, const ThreadContext& context);

Result<void> add_seccomp_filter(Batch& batch, const image::SeccompFilter& filter,
                                unsigned extra_flags);
// How many filters, from the outermost, all threads have in common.
int seccomp_shared(const image::Process& process);
// An upper bound of what the functions above put into the arena.
std::size_t thread_data_bytes(const ThreadContext& context);

}  // namespace godwit::restore
