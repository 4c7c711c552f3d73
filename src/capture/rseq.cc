#include "capture/rseq.h"

#include <linux/rseq.h>

#include <array>
#include <cstddef>
#include <cstring>

#include "sys/memory_io.h"

namespace godwit::capture {
namespace {

// False where the memory isn't there: the kernel would end such a thread itself when it goes on.
template <typename T>
Result<bool> read_value(pid_t tid, std::uint64_t address, T& value) {
  const sys::RemoteRange from[] = {{address, sizeof value}};
  Result<std::uint64_t> done =
      sys::vm_read(tid, std::as_writable_bytes(std::span(&value, 1)), from);
  if (!done.ok() && done.error().sys_errno() == EFAULT) return false;
  return TRY(std::move(done)) == sizeof value;
}

}  // namespace

Result<bool> abort_restartable_sequence(pid_t tid, sys::Regs& regs) {
  if (sys::in_syscall(regs))
    return false;  // A sequence with a system call in it is an error of the program.
  const sys::RseqConfig config = TRY(sys::ptrace_get_rseq(tid));
  if (config.address == 0) return false;
  const std::uint64_t pointer_at = config.address + offsetof(struct rseq, rseq_cs);
  std::uint64_t pointer = 0;
  if (!TRY(read_value(tid, pointer_at, pointer)) || pointer == 0) return false;
  struct rseq_cs sequence = {};
  if (!TRY(read_value(tid, pointer, sequence))) return false;
  if (regs.rip - sequence.start_ip >= sequence.post_commit_offset) return false;
  std::uint32_t signature = 0;  // In front of the handler; a wrong one is for the kernel to punish.
  if (!TRY(read_value(tid, sequence.abort_ip - sizeof signature, signature)) ||
      signature != config.signature) {
    return false;
  }
  std::uint64_t none = 0;
  const iovec from[] = {{&none, sizeof none}};
  const sys::RemoteRange to[] = {{pointer_at, sizeof none}};
  if (TRY(sys::vm_write(tid, from, to)) != sizeof none) {
    return make_error(Errc::internal, "thread {}: its rseq area at {:#x} can't be written", tid,
                      config.address);
  }
  regs.rip = sequence.abort_ip;
  return true;
}

}  // namespace godwit::capture
