// States of TCP, as the kernel numbers them (include/net/tcp_states.h).
#pragma once

#include <cstdint>

namespace godwit::sockets {

enum TcpState : std::uint8_t {
  tcp_established = 1,
  tcp_syn_sent = 2,
  tcp_syn_received = 3,
  tcp_fin_wait1 = 4,
  tcp_fin_wait2 = 5,
  tcp_time_wait = 6,
  tcp_closed = 7,
  tcp_close_wait = 8,
  tcp_last_ack = 9,
  tcp_listening = 10,
  tcp_closing = 11,
};

}  // namespace godwit::sockets
