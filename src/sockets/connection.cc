// How a connection is told and made (tcp(7), and the kernel's tcp.c where that is silent):
//
// - A FIN counts as one byte of its direction. Whether one was sent, and whether one came, is the
//   state: FIN_WAIT1, CLOSING and LAST_ACK have sent one that isn't acknowledged, FIN_WAIT2 one
//   that is; CLOSE_WAIT, CLOSING and LAST_ACK have got one.
// - A new socket in repair mode that connects is ESTABLISHED at once. What is written then goes
// into
//   the queue that was chosen: to the receive queue as received, to the send queue as sent. What
//   was never sent is written out of repair mode, while the peer's window is said to be closed: so
//   it stays unsent. A FIN of ours is shutdown(2), of the peer's a packet that we make.
// - `rcv_wup` may lie behind a FIN that hasn't come yet in the new socket; it is taken back by one.
// - A connection that has seen no round trip believes in 3 s. So the last byte that was
// acknowledged
//   is written once more, and acknowledged at once by a packet of the peer's that we make. It
//   echoes the time: bytes that were written in repair mode have none of their own. It has no time
//   of the peer's, which the kernel takes for one that it doesn't know yet.
// - Timers of a socket in repair mode run. Where both ends are in the capsule, one that is complete
// may
//   send to one that isn't, which must not take it, or to one that isn't there yet, whose place
//   answers with a reset. So at first everything is dropped, and then resets are, until the program
//   starts.

#include "sockets/connection.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "sockets/packets.h"
#include "sockets/tcp_state.h"
#include "sys/socket_options.h"
#include "sys/tcp_repair.h"

namespace godwit::sockets {
namespace {

bool sent_fin(std::uint32_t s) {
  return s == tcp_fin_wait1 || s == tcp_fin_wait2 || s == tcp_last_ack || s == tcp_closing;
}
bool got_fin(std::uint32_t s) {
  return s == tcp_close_wait || s == tcp_last_ack || s == tcp_closing;
}

constexpr int queue_room_bytes = 1 << 20;  // Beside what is put into it.

Result<void> write_all(int socket, const std::string& data, const char* what) {
  std::size_t done = 0;
  while (done < data.size()) {
    const ssize_t n = ::send(socket, data.data() + done, data.size() - done, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      return os_error(
          fmt::format("send({} of {} bytes {})", data.size() - done, data.size(), what));
    done += static_cast<std::size_t>(n);
  }
  return {};
}

// shutdown(SHUT_RD): the peer doesn't learn of it.
constexpr std::uint32_t shut_for_reading = 1;

tcp_repair_window window_of(const image::TcpWindow& w) {
  tcp_repair_window window{};
  window.snd_wl1 = w.snd_wl1(), window.snd_wnd = w.snd_wnd(), window.max_window = w.max_window();
  window.rcv_wnd = w.rcv_wnd(), window.rcv_wup = w.rcv_wup();
  return window;
}

// Its part of a queue has room whatever the limits are; they are set in the end.
Result<void> make_room(int socket, const image::Connection& c) {
  const std::size_t out = 1 + c.sent().size() + c.unsent().size();
  TRY(sys::set_buffer_size(socket, SO_SNDBUF, static_cast<int>(4 * out) + queue_room_bytes));
  return sys::set_buffer_size(socket, SO_RCVBUF,
                              static_cast<int>(4 * c.received().size()) + queue_room_bytes);
}

Result<void> fill_queues(int socket, const image::Socket& image) {
  const image::Connection& c = image.connection();
  TRY(sys::choose_tcp_queue(socket, sys::TcpQueue::receive));
  TRY(write_all(socket, c.received(), "received"));
  TRY(sys::choose_tcp_queue(socket, sys::TcpQueue::send));
  TRY(write_all(socket, std::string(1, '\0'), "acknowledged"));
  TRY(write_all(socket, c.sent(), "sent"));
  if (!c.unsent().empty()) {
    tcp_repair_window closed = window_of(c.window());
    if (got_fin(c.state())) --closed.rcv_wup, ++closed.rcv_wnd;
    closed.snd_wnd = 0;
    TRY(sys::set_tcp_window(socket, closed));
    TRY(sys::update_tcp_segment_size(socket));
    TRY(sys::set_tcp_repair(socket, sys::TcpRepair::off_silently));
    Result<void> written = write_all(socket, c.unsent(), "not sent");
    // A FIN that is sent after this stands behind it.
    if (written.ok() && sent_fin(c.state()) && ::shutdown(socket, SHUT_WR) != 0)
      written = os_error("shutdown(SHUT_WR)");
    TRY(sys::set_tcp_repair(socket, sys::TcpRepair::on));
    TRY(std::move(written));
  } else if (sent_fin(c.state())) {
    if (::shutdown(socket, SHUT_WR) != 0) return os_error("shutdown(SHUT_WR)");
  }
  return sys::choose_tcp_queue(socket, sys::TcpQueue::none);
}

// Where both ends are in the capsule, the other one may have heard of our end already, and said so.
std::uint32_t after_our_end(std::uint32_t state) {
  if (state == tcp_fin_wait1) return tcp_fin_wait2;
  if (state == tcp_closing) return tcp_time_wait;
  if (state == tcp_last_ack) return tcp_closed;
  return state;
}

// What the peer has said: how far it has got, which gives the round trip that our timeouts are made
// of; and perhaps that it has come to its own end.
Result<void> hear_peer(int socket, int netns, const Endpoints& ends, const image::Connection& c) {
  Segment segment;
  segment.sequence = c.receive_seq() - (got_fin(c.state()) ? 1 : 0);
  segment.acknowledged = c.send_seq();  // Of FIN_WAIT2: behind our FIN.
  segment.window = 0;  // Nothing is sent for it; what the window is comes after it.
  if ((c.options() & TCPI_OPT_TIMESTAMPS) != 0)
    segment.timestamp_echo =
        static_cast<std::uint32_t>(TRY(sys::int_tcp_option(socket, TCP_TIMESTAMP)));
  segment.ends = got_fin(c.state());
  TRY(send_segment(netns, ends, segment));
  const std::uint8_t state = TRY(sys::read_tcp_info(socket)).tcpi_state;
  if (state != c.state() && state != after_our_end(c.state()))
    return make_error(Errc::internal, "a TCP connection came to state {} instead of {}", state,
                      c.state());
  return {};
}

}  // namespace

Result<void> describe_connection(int socket, image::Socket& image) {
  image::Connection& out = *image.mutable_connection();
  const tcp_info info = TRY(sys::read_tcp_info(socket));
  out.set_state(info.tcpi_state);
  const std::uint32_t unacknowledged = TRY(sys::unacknowledged_bytes(socket));
  std::uint32_t unsent = TRY(sys::unsent_bytes(socket));
  const std::uint32_t unread = TRY(sys::unread_bytes(socket));
  const std::uint32_t end = TRY(sys::tcp_sequence(socket, sys::TcpQueue::send));
  std::uint32_t data = unacknowledged;
  if (sent_fin(out.state()) && out.state() != tcp_fin_wait2) {
    if (data == 0) return make_error(Errc::internal, "a FIN that was lost");
    --data;
    if (unsent > 0) --unsent;
  }
  // Of FIN_WAIT2: behind the FIN, as the peer has acknowledged it.
  out.set_send_seq(end - unacknowledged);
  out.set_receive_seq(TRY(sys::tcp_sequence(socket, sys::TcpQueue::receive)));
  const std::string queue = TRY(sys::peek_tcp_queue(socket, sys::TcpQueue::send, data));
  out.set_sent(queue.substr(0, data - unsent));
  out.set_unsent(queue.substr(data - unsent));
  out.set_received(TRY(sys::peek_tcp_queue(socket, sys::TcpQueue::receive, unread)));
  TRY(sys::choose_tcp_queue(socket, sys::TcpQueue::none));
  if (!got_fin(out.state()) && sys::polls(socket, POLLRDHUP)) image.set_shutdown(shut_for_reading);
  out.set_mss(static_cast<std::uint32_t>(TRY(sys::int_tcp_option(socket, TCP_MAXSEG))));
  out.set_options(info.tcpi_options);
  out.set_send_scale(info.tcpi_snd_wscale), out.set_receive_scale(info.tcpi_rcv_wscale);
  out.set_timestamp(static_cast<std::uint32_t>(TRY(sys::int_tcp_option(socket, TCP_TIMESTAMP))));
  const tcp_repair_window window = TRY(sys::tcp_window(socket));
  image::TcpWindow& w = *out.mutable_window();
  w.set_snd_wl1(window.snd_wl1), w.set_snd_wnd(window.snd_wnd);
  w.set_max_window(window.max_window), w.set_rcv_wnd(window.rcv_wnd);
  w.set_rcv_wup(window.rcv_wup);
  return {};
}

Result<void> restore_connection(int socket, int netns, const image::Socket& image) {
  const image::Connection& c = image.connection();
  TRY(sys::set_tcp_repair(socket, sys::TcpRepair::on));  // Lets it bind where others are, too.
  TRY(make_room(socket, c));
  const std::uint32_t first_sent = c.send_seq() - (c.state() == tcp_fin_wait2 ? 1 : 0);
  const std::uint32_t first_received = c.receive_seq() - (got_fin(c.state()) ? 1 : 0) -
                                       static_cast<std::uint32_t>(c.received().size());
  TRY(sys::set_tcp_sequence(socket, sys::TcpQueue::send, first_sent - 1));
  TRY(sys::set_tcp_sequence(socket, sys::TcpQueue::receive, first_received));
  TRY(sys::choose_tcp_queue(socket, sys::TcpQueue::none));
  auto address = [](const std::string& bytes) {
    return reinterpret_cast<const sockaddr*>(bytes.data());
  };
  if (::bind(socket, address(image.local()), static_cast<socklen_t>(image.local().size())) != 0)
    return os_error("bind(a connection's address)");
  TRY(sys::drop_all_packets(socket));
  if (::connect(socket, address(image.peer()), static_cast<socklen_t>(image.peer().size())) != 0)
    return os_error("connect(in repair mode)");
  TRY(sys::set_tcp_negotiated(socket, {.mss = c.mss(),
                                       .timestamps = (c.options() & TCPI_OPT_TIMESTAMPS) != 0,
                                       .sack = (c.options() & TCPI_OPT_SACK) != 0,
                                       .scale = (c.options() & TCPI_OPT_WSCALE) != 0,
                                       .send_scale = c.send_scale(),
                                       .receive_scale = c.receive_scale()}));
  const Endpoints ends = TRY(from_peer(image.local(), image.peer()));
  if ((c.options() & TCPI_OPT_TIMESTAMPS) != 0)
    TRY(sys::set_int_tcp_option(socket, TCP_TIMESTAMP, static_cast<int>(c.timestamp())));
  TRY(fill_queues(socket, image));
  TRY(sys::drop_resets(socket));
  TRY(hear_peer(socket, netns, ends, c));
  if ((image.shutdown() & shut_for_reading) != 0 && ::shutdown(socket, SHUT_RD) != 0)
    return os_error("shutdown(SHUT_RD)");
  TRY(sys::set_tcp_window(socket, window_of(c.window())));
  return sys::update_tcp_segment_size(socket);
}

}  // namespace godwit::sockets
