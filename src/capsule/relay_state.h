// The state of a capsule's stdin, stdout and stderr as it travels: a RelayHead and the bytes it
// counts. Made by relay_get, taken by relay_put; everybody between treats it as bytes.
// Little-endian, as godwit-init has it in memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace godwit::capsule {

inline constexpr std::uint32_t relay_magic = 0x53525747;  // "GWRS"
inline constexpr std::uint32_t relay_version = 1;

// In this order after the head: output, one bit a byte of it (its stream, 1 is stderr; the first
// byte's is the lowest bit of the first byte), input as it came, input that the terminal has
// processed.
struct RelayHead {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint64_t out_begin;  // Output kept: [out_begin, out_end); of that not acknowledged: from
  std::uint64_t out_acked;  // out_acked on.
  std::uint64_t out_end;
  std::uint64_t stdin_next;    // The input kept is [stdin_next - stdin_bytes, stdin_next): what the
  std::uint64_t stdin_bytes;   // program hasn't read yet, whether it is in its pipe or not.
  std::uint64_t cooked_bytes;  // CookedRecords with their bytes.
  std::int32_t main_pid;       // In the capsule; 0: none.
  std::int32_t exited;
  std::int32_t wait_status;
  std::uint32_t stdin_eof;  // Nothing comes after stdin_next.
  std::uint32_t tty;
  std::uint32_t pipe_bytes[3];    // Capacities: a program can change them, and sees them.
  std::uint16_t winsize[4];       // struct winsize
  std::int32_t foreground_group;  // Of the terminal, in the capsule; 0: none. For restore to
  std::int32_t session;           // put back: only a process of that session can.
  std::uint8_t termios[44];       // struct termios2 of the kernel
  std::uint32_t reserved;
};
static_assert(sizeof(RelayHead) == 152);

// What a read(2) of the terminal would give in one piece: a line in canonical mode.
struct CookedRecord {
  std::uint32_t bytes;
  std::uint32_t end;
  enum End : std::uint32_t {
    open = 0,      // Raw bytes, or a line that isn't complete.
    complete = 1,  // Its last byte ends the line.
    eof = 2,       // Ended by the EOF character, which isn't among the bytes.
  };
};
static_assert(sizeof(CookedRecord) == 8);

}  // namespace godwit::capsule
