// Threads that were stopped inside a restartable sequence.
#pragma once

#include "base/result.h"
#include "sys/tracing.h"

namespace godwit::capture {

// If `regs` are those of a thread inside a restartable sequence, does what the kernel does when
// such a thread is preempted: the sequence is over, the thread goes on at its abort handler. The
// answer: whether `regs` were changed; they must be set by the caller. Preconditions: called on the
// thread that seized `tid`, which stands.
//
// Why: the kernel looks whether a thread is inside when the thread returns to its program
// (rseq_ip_fixup). If it isn't, the pointer to the sequence is cleared. A thread that executes an
// injected call returns to our code: so the pointer would be gone when its own registers come back,
// nobody would abort it, and a count that was read on one processor would be written on another
// (6.18: four moves cost a program that counts so all the time 0.2 to 9 % of its counts). An abort
// may happen at any time, so it needs no undoing where the thread goes on here.
Result<bool> abort_restartable_sequence(pid_t tid, sys::Regs& regs);

}  // namespace godwit::capture
