// The code that a tracee executes for us, and what lies beside it. Why it is as it is: remote.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace godwit::sys::remote_code {

// The second word changes with everything below.
inline constexpr std::uint64_t magic[2] = {0x6a6e492074697764ULL, 0x6f47206564746366ULL};

// A call, and where its result goes. RemoteBatch has the same under another name.
struct Entry {
  std::uint64_t nr_plus_1;  // 0: here the batch ends.
  std::uint64_t args[6];
  std::int64_t result;
};
static_assert(sizeof(Entry) == 64);

// What lies at the start of the free tail of [vdso]. The code is position-independent and follows.
struct Header {
  std::uint64_t magic[2];
  std::uint64_t arena, arena_bytes;  // Written before the arena is mapped.
  // Registers that injected code changes, in the order in which it loads them back.
  std::uint64_t rax, rbx, rcx, rdx, rsi, rdi, r8, r9, r10, r11, rip;
  // Guarded calls: until when they may be made (time stamp counter); where the code goes on after
  // one: `store` or `hold`.
  std::uint64_t deadline;
  std::uint64_t after;
  std::uint64_t unused;
};
static_assert(sizeof(Header) == 18 * 8);
static_assert(offsetof(Header, rip) == 14 * 8);

// At the start of the arena, so that what a dead tracer left is recognised.
struct ArenaHeader {
  std::uint64_t magic[2];
  std::uint64_t bytes;
  std::uint64_t unused[5];
};
static_assert(sizeof(ArenaHeader) == 64);

// What follows the header, and where in it things are: offsets from the header.
struct Code {
  std::vector<std::byte> bytes;
  std::size_t boot = 0;             // One call whose arguments are in registers already.
  std::size_t loop = 0;             // rbx: the first entry of a batch.
  std::size_t loop_syscall = 0;     // The syscall instruction there.
  std::size_t restore = 0;          // Loads the program's registers, and goes.
  std::size_t guarded = 0;          // As `loop`, but each call waits for a deadline in the future.
  std::size_t guarded_syscall = 0;  // The syscall instruction there.
  std::size_t store = 0;            // After it: the result, then the next entry.
  std::size_t stored = 0;           // The result is stored; still at the same entry.
  std::size_t hold = 0;             // After it: rax is the result; waits for the tracer.
  std::size_t single = 0;           // The entry of a guarded call without an arena.
  std::size_t end = 0;

  // Without what is for guarded calls, where [vdso] has no more room.
  std::size_t least() const { return guarded; }
};
const Code& injected_code();

}  // namespace godwit::sys::remote_code
