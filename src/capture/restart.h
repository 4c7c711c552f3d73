// What an interrupted system call needs in order to go on in another kernel.
#pragma once

#include "capture/freeze.h"
#include "image/image.pb.h"

namespace godwit::capture {

// Fills thread.restart if the call has a relative timeout, and gives the registers for the image.
//
// The image's registers are those of the stop: orig_rax >= 0 and a restart code in rax where a call
// was interrupted. Set at a PTRACE_EVENT_STOP they make the target's kernel do what this one would
// have done at the moment the thread goes on: a handler runs -> EINTR (or SA_RESTART), none -> the
// call is executed again. Only -ERESTART_RESTARTBLOCK can't travel; it becomes -ERESTARTNOHAND,
// which is the same but for the time that is left.
Result<sys::Regs> describe_restart(const FrozenProcess& process, const FrozenThread& thread,
                                   const sys::RemoteProcess& memory, std::int64_t frozen_at_ns,
                                   image::Thread& out);

// For a thread that goes on here: calls that begin anew after a stop (epoll_wait, sigtimedwait,
// semtimedop) get the time that is left as their timeout. Where that isn't known, or there is no
// place for it, the call waits its whole time again: late, never early. Preconditions: the thread
// is in its stop, with the context of `thread.regs`.
Result<void> keep_timeout(const FrozenProcess& process, FrozenThread& thread,
                          const sys::RemoteProcess& memory, std::int64_t frozen_at_ns);

// Which argument is a relative timeout.
struct TimeoutArg {
  image::Restart::Timeout kind = image::Restart::NONE;
  int index = 0;
  int left_index =
      -1;  // Argument that points to where the kernel has written what is left; -1: none.
};
TimeoutArg relative_timeout(std::int64_t nr, const std::uint64_t (&args)[6]);

}  // namespace godwit::capture
