// Problem. When a signal comes the kernel saves the registers on the stack, in an XSAVE area as
// large as this processor's; sigreturn(2) takes them back from there. A kernel on a processor with
// a smaller area doesn't take a larger one: it takes x87 and SSE from it and *clears the rest*
// (check_xstate_in_sigframe of arch/x86/kernel/fpu/signal.c, 6.1 to 6.18). So a program that began
// on a processor without AVX-512, was moved to one with it, and is in a signal handler when it is
// to go back, would lose the upper halves of its AVX registers without a word.
//
// Way. Where the target's area is smaller, and only there, the stacks are searched from the stack
// pointer upwards for areas that are too large; the program stays until its handler is through. An
// area tells itself: 64-byte aligned, FP_XSTATE_MAGIC1 and its sizes behind the FXSAVE image,
// FP_XSTATE_MAGIC2 at its end. What is left of an earlier frame in memory that a function on the
// stack hasn't written to looks the same; then the program stays though it could go. Not seen: a
// large area on the stack that a handler on an alternate stack has interrupted, where the latter's
// own area isn't large.
//
// The other way round, into a larger area, is fine: the kernel goes by the size in the frame.
#include "capture/signal_frames.h"

#include <sys/uio.h>
#include <sys/user.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>

namespace godwit::capture {
namespace {

constexpr std::uint64_t stack_bytes_max = 64 << 20;
constexpr std::uint64_t area_alignment = 64;
constexpr std::size_t chunk_bytes = 1 << 20;
constexpr std::uint32_t area_bytes_max = 16 * 1024;
constexpr std::uint32_t magic1 = 0x46505853, magic2 = 0x46505845;

// struct _fpx_sw_bytes, at 464 of the FXSAVE image (uapi/asm/sigcontext.h).
struct SoftwareBytes {
  std::uint32_t magic1, extended_size;
  std::uint64_t xfeatures;
  std::uint32_t xstate_size;
};
constexpr std::size_t software_bytes_at = 464;

std::size_t read_some(pid_t pid, std::uint64_t from, std::span<char> to) {
  iovec local{to.data(), to.size()};
  iovec remote{reinterpret_cast<void*>(from), to.size()};
  const ssize_t n = ::process_vm_readv(pid, &local, 1, &remote, 1, 0);
  return n < 0 ? 0 : static_cast<std::size_t>(n);
}

std::optional<std::uint32_t> area_at(pid_t pid, std::uint64_t address, const SoftwareBytes& found) {
  if (found.magic1 != magic1 || found.xstate_size > area_bytes_max ||
      found.extended_size != found.xstate_size + sizeof magic2)
    return std::nullopt;
  std::uint32_t end = 0;
  if (read_some(pid, address + found.xstate_size, {reinterpret_cast<char*>(&end), sizeof end}) !=
          sizeof end ||
      end != magic2)
    return std::nullopt;
  return found.xstate_size;
}

// The largest area in [from, to); 0: none.
std::uint32_t largest_area(pid_t pid, std::uint64_t from, std::uint64_t to) {
  std::uint32_t largest = 0;
  std::vector<char> chunk(chunk_bytes);
  from &= ~(area_alignment - 1);
  while (from < to) {
    const std::size_t wanted = std::min<std::uint64_t>(to - from, chunk.size());
    const std::size_t got = read_some(pid, from, std::span(chunk).first(wanted));
    for (std::size_t at = 0; at + 512 <= got; at += area_alignment) {
      SoftwareBytes found;
      std::memcpy(&found, chunk.data() + at + software_bytes_at, sizeof found);
      if (auto size = area_at(pid, from + at, found)) largest = std::max(largest, *size);
    }
    // The last image may go on in the next piece.
    if (got < wanted || wanted < chunk.size()) break;
    from += wanted - 512;
  }
  return largest;
}

}  // namespace

Result<std::vector<std::string>> large_signal_frames(const FrozenTree& tree,
                                                     const image::Capsule& described,
                                                     std::uint32_t xsave_bytes) {
  std::vector<std::string> reasons;
  for (const image::Process& process : described.processes()) {
    for (const image::Thread& thread : process.threads()) {
      user_regs_struct regs{};
      if (thread.regs().size() != sizeof regs) continue;
      std::memcpy(&regs, thread.regs().data(), sizeof regs);
      std::uint32_t largest = 0;
      for (const image::Vma& vma : process.mm().vmas()) {
        if (regs.rsp < vma.start() || regs.rsp >= vma.end()) continue;
        largest = largest_area(tree.node_pid(process.pid()), regs.rsp,
                               std::min<std::uint64_t>(vma.end(), regs.rsp + stack_bytes_max));
      }
      if (largest <= xsave_bytes) continue;
      reasons.push_back(
          fmt::format("thread {} is in a signal handler, and {} bytes of registers wait on its "
                      "stack, of which the target's processor takes {}",
                      thread.tid(), largest, xsave_bytes));
    }
  }
  return reasons;
}

}  // namespace godwit::capture
