// What godwit-init and its clients say to each other. Included by both sides; depends on nothing,
// because godwit-init is a static binary without our libraries.
//
// Transport: a Unix SOCK_SEQPACKET socket, `init.sock` in the capsule's run directory, for root
// only. Each packet is a Header and at most payload_bytes_max bytes; descriptors come along by
// SCM_RIGHTS. Several clients may be connected. Each has at most one request outstanding; the
// answer has the request's type with `reply_bit`, or is `error`. Packets of type >= 100 and < 200
// aren't answered; those from 200 on are events, which may arrive between a request and its answer.
//
// Bytes of output are numbered from 0, stdout and stderr in one sequence, as init read them; bytes
// of input likewise. The numbers go on when the capsule moves, so a client that is attached to the
// next init says where it was, and nothing is lost or doubled.
#pragma once

#include <cstddef>
#include <cstdint>

namespace godwit::capsule {

inline constexpr std::size_t payload_bytes_max = 64 * 1024;
inline constexpr std::size_t clients_max = 16;
inline constexpr std::size_t message_fds_max = 16;
inline constexpr std::size_t held_fds_max = 256;
inline constexpr std::uint64_t unacked_output_bytes_max = 1 << 20;  // Then the pipes are left full.
inline constexpr std::uint64_t log_bytes = 1 << 20;                 // Kept after acknowledgement.
inline constexpr std::uint64_t stdin_window_bytes = 1 << 20;        // Unacknowledged input at most.
inline constexpr std::uint32_t reply_bit = 0x8000'0000;

enum class Message : std::uint32_t {
  // Requests. "-> " says what the answer carries.
  spawn = 1,      // a: bytes; fd: memfd with SpawnHead and what follows it. -> a: pid; fd: pidfd.
  clocks = 2,     // payload: ClockDelta. -> fd: the new time namespace, for setns(CLONE_NEWTIME).
  skeleton = 3,   // a: pid. -> a: pid, b: the number of its descriptor; fds: pidfd, channel.
  next_pid = 4,   // a: ns_last_pid to set, or no_value to read it. -> a: ns_last_pid.
  relay_get = 5,  // -> a: bytes; fd: memfd with the encoded relay state (relay_state.h).
  relay_put = 6,  // a: bytes; fd: memfd. Only before anything was spawned or relayed.
  relay_go = 7,
  attach = 8,  // a: sequence number of the first byte of output wanted, or no_value: the first
               // unacknowledged one. -> a: next byte of input expected; b: first of output sent.
  detach = 9,
  watch = 10,     // `exited` is wanted on this connection too, without attaching.
  winsize = 11,   // a: rows << 16 | columns; b: x pixels << 16 | y pixels.
  signal = 12,    // a: signal; b: SignalTo.
  status = 13,    // -> payload: Status; fd: pidfd of the main program, if it lives.
  hold_fd = 14,   // payload: tag; fds: kept, added to what the tag has already.
  fetch_fd = 15,  // payload: tag; a: index of the first. -> a: fds under the tag; fds: copies.
  drop_fd = 16,   // payload: tag.
  stdio = 17,     // a: 1 for the original descriptions, 0 for others of the same files. -> payload:
  // StdioInfo; fds: the program's ends of 0, 1, 2: three pipes, or once the pty's slave.
  read_log =
      18,  // a: from. -> a: number of the first byte given, b: stream; payload, empty at the end.
  shutdown = 19,  // Everything in the capsule is killed, init ends.
  hostname = 20,  // payload: the name. Of a shell that was made before its capsule was known.
  terminal = 21,  // Makes the pty, if it isn't there, before relay_put fills it: a session's leader
                  // must have it before the leader's children are made.

  // Streams: no answer.
  stdin_data = 100,  // a: number of the first byte; payload. Only from the attached client.
  stdin_eof = 101,   // a: number of bytes before the end.
  out_ack = 102,     // a: output before this number may be forgotten (but for the log).

  // Events.
  out = 200,        // a: number of the first byte; b: stream (1 stdout or pty, 2 stderr); payload.
  exited = 201,     // a: pid, b: wait status of the main program; after all output it left behind.
  stdin_ack = 202,  // a: bytes before this number are with the program's pipe or pty.
  stdin_resend =
      203,         // a: some input was dropped while the relay stood still: send again from here.
  detached = 204,  // Another client has attached.

  error = 0xffff'ffff,  // a: errno, b: type of the request; payload: what failed.
};

inline constexpr std::uint64_t no_value = ~std::uint64_t{0};

struct Header {
  std::uint32_t type;
  std::uint32_t length;  // Of the payload.
  std::uint64_t a;
  std::uint64_t b;
};
static_assert(sizeof(Header) == 24);

// Followed by: `groups` numbers (u32), then the strings, each ended by a zero byte: cwd, arguments,
// environment.
struct SpawnHead {
  std::uint32_t uid;
  std::uint32_t gid;
  std::uint32_t groups;
  std::uint32_t argc;
  std::uint32_t envc;
  std::uint32_t tty;  // 1: a new pseudo terminal is stdin, stdout, stderr and the controlling one.
  std::uint16_t rows;
  std::uint16_t columns;
  std::uint32_t reserved;
  std::int64_t monotonic_delta_ns;  // As in ClockDelta.
  std::int64_t boottime_delta_ns;
};
static_assert(sizeof(SpawnHead) == 48);
inline constexpr std::size_t spawn_bytes_max = 4 << 20;

// What the capsule's clocks show beyond those of the node (of init's own time namespace).
struct ClockDelta {
  std::int64_t monotonic_ns;
  std::int64_t boottime_ns;
};
static_assert(sizeof(ClockDelta) == 16);

enum class SignalTo : std::uint64_t {
  main = 0,        // The main program alone.
  foreground = 1,  // The terminal's foreground group, without terminal the main program's group.
};

struct Status {
  std::int32_t main_pid;  // In the capsule; 0: none yet.
  std::int32_t exited;    // 1: wait_status is final.
  std::int32_t wait_status;
  std::int32_t relay_running;
  std::uint64_t out_end;  // Bytes read from the program so far.
  std::uint64_t out_acked;
  std::uint64_t out_begin;   // First byte that read_log can still give.
  std::uint64_t stdin_next;  // Next byte of input expected.
  std::int32_t attached;
  std::int32_t clients;
};
static_assert(sizeof(Status) == 56);

struct StdioInfo {
  std::int32_t kind;  // 0: none yet, 1: pipes, 2: pty.
  std::int32_t pty_index;
  std::uint64_t device;
  std::uint64_t inode[3];  // Pipes: of stdin, stdout, stderr. Pty: [0] is that of the slave.
};
static_assert(sizeof(StdioInfo) == 40);

}  // namespace godwit::capsule
