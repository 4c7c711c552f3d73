// The code that a tracee executes for us, and what lies beside it. Why it is as it is: remote.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace godwit::sys::remote_code {

inline constexpr std::uint64_t magic[2] = {0x6a6e492074697764ULL, 0x6f47206564746365ULL};

// What lies at the start of the free tail of [vdso]. The code is position-independent and follows.
struct Header {
  std::uint64_t magic[2];
  std::uint64_t arena, arena_bytes;  // Written before the arena is mapped.
  // Registers that injected code changes, in the order in which it loads them back.
  std::uint64_t rax, rbx, rcx, rdx, rsi, rdi, r8, r9, r10, r11, rip;
  std::uint64_t unused;
};
static_assert(sizeof(Header) == 16 * 8);
static_assert(offsetof(Header, rip) == 14 * 8);

// At the start of the arena, so that what a dead tracer left is recognised.
struct ArenaHeader {
  std::uint64_t magic[2];
  std::uint64_t bytes;
  std::uint64_t unused[5];
};
static_assert(sizeof(ArenaHeader) == 64);

// Offsets of the code from the header.
inline constexpr std::size_t boot_offset = sizeof(Header);     // syscall; jmp restore
inline constexpr std::size_t loop_offset = boot_offset + 4;    // rbx: the first RemoteBatch::Entry
inline constexpr std::size_t loop_syscall = loop_offset + 33;  // The syscall instruction there.
inline constexpr std::size_t code_bytes = 253;                 // With the header.

std::vector<std::byte> assemble();  // What follows the header.

}  // namespace godwit::sys::remote_code
