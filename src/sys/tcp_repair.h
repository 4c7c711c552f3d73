// TCP_REPAIR, tcp(7): a connection's state is read and set instead of being the outcome of packets.
// Needs CAP_NET_ADMIN in the user namespace of the socket's network. Nothing here is done for
// listening sockets, which have no repair mode.
//
// A socket in repair mode goes on taking packets in: whoever reads it keeps them away
// (drop_all_packets).
#pragma once

#include <linux/tcp.h>

#include <cstdint>
#include <string>

#include "base/result.h"

namespace godwit::sys {

enum class TcpRepair : int {
  off = 0,  // And asks the peer what it has, which makes traffic flow again.
  on = 1,
  off_silently = -1,  // TCP_REPAIR_OFF_NO_WP
};
Result<void> set_tcp_repair(int socket, TcpRepair mode);
Result<bool> in_tcp_repair(int socket);

Result<tcp_info> read_tcp_info(int socket);

enum class TcpQueue : int { none = 0, receive = 1, send = 2 };
// Which queue the next calls are about. Preconditions, from here on: the socket is in repair mode.
Result<void> choose_tcp_queue(int socket, TcpQueue queue);
// Of the end of the queue (what comes next). Setting it: the socket isn't connected yet.
Result<std::uint32_t> tcp_sequence(int socket, TcpQueue queue);
Result<void> set_tcp_sequence(int socket, TcpQueue queue, std::uint32_t sequence);
// `bytes` of a queue's beginning; they stay in it.
Result<std::string> peek_tcp_queue(int socket, TcpQueue queue, std::size_t bytes);

Result<tcp_repair_window> tcp_window(int socket);
Result<void> set_tcp_window(int socket, const tcp_repair_window& window);

// Option values that were negotiated when it was connected. Setting: it is connected, in repair
// mode.
struct TcpNegotiated {
  std::uint32_t mss = 0;
  bool timestamps = false, sack = false, scale = false;
  std::uint32_t send_scale = 0, receive_scale = 0;
};
Result<void> set_tcp_negotiated(int socket, const TcpNegotiated& options);
// The size of segments follows from that and from the peer's largest window, once it is told to.
// Else it stays what it was when the socket was connected: 536 bytes less options.
Result<void> update_tcp_segment_size(int socket);

Result<int> int_tcp_option(int socket, int name);
Result<void> set_int_tcp_option(int socket, int name, int value);

// Sends what waits to be sent, as far as the peer has room. Leaving repair mode doesn't: it waits
// for the peer's answer, which may be lost, and then for a timer.
Result<void> send_what_waits(int socket);

// What comes for it is dropped before TCP sees it, under the socket's lock, until `allow_packets`:
// everything, or what would end the connection at once. allow_packets leaves other filters alone.
// Preconditions: it has no filter of the program's own.
Result<void> drop_all_packets(int socket);
Result<void> drop_resets(int socket);
Result<void> allow_packets(int socket);

// Bytes of its queues: not read yet; not acknowledged yet; not even sent yet. FIN counts as one in
// the latter two.
Result<std::uint32_t> unread_bytes(int socket);
Result<std::uint32_t> unacknowledged_bytes(int socket);
Result<std::uint32_t> unsent_bytes(int socket);

}  // namespace godwit::sys
