#include "sockets/restored_sockets.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>

#include "base/io.h"
#include "sockets/connection.h"
#include "sockets/datagrams.h"
#include "sockets/held_sockets.h"
#include "sockets/netlink_sockets.h"
#include "sockets/packets.h"
#include "sockets/tcp_state.h"
#include "sys/namespaces.h"
#include "sys/socket_options.h"
#include "sys/tcp_repair.h"

namespace godwit::sockets {
namespace {

struct Options {
  std::vector<sys::SocketOption> early, late;
  int reuse_address = 0;
};

Options options_of(const image::Socket& image) {
  Options out;
  for (const image::SocketOption& o : image.options()) {
    sys::SocketOption option{static_cast<int>(o.level()), static_cast<int>(o.name()), o.value()};
    if (option.level == SOL_SOCKET && option.name == SO_REUSEADDR) {
      std::memcpy(&out.reuse_address, option.value.data(),
                  std::min(sizeof out.reuse_address, option.value.size()));
      continue;
    }
    (sys::is_late_option(option) ? out.late : out.early).push_back(std::move(option));
  }
  return out;
}

Result<void> set_reuse_address(int socket, int value) {
  return sys::set_int_socket_option(socket, SOL_SOCKET, SO_REUSEADDR, value);
}

// Whatever becomes of it, the program sees as it would have. A thread that waits in connect(2)
// waits on.
Result<void> begin_to_connect(int socket, const std::string& to) {
  const int flags = ::fcntl(socket, F_GETFL);
  if (flags < 0 || ::fcntl(socket, F_SETFL, flags | O_NONBLOCK) != 0)
    return os_error("fcntl(F_SETFL)");
  (void)::connect(socket, reinterpret_cast<const sockaddr*>(to.data()),
                  static_cast<socklen_t>(to.size()));
  if (::fcntl(socket, F_SETFL, flags) != 0) return os_error("fcntl(F_SETFL)");
  return {};
}

}  // namespace

// In repair mode, as it may share its address with connections that were bound before.
Result<void> RestoredSockets::bind(int socket, const image::Socket& image) const {
  if (!has_port(image.local())) return {};
  TRY(sys::set_tcp_repair(socket, sys::TcpRepair::on));
  if (::bind(socket, reinterpret_cast<const sockaddr*>(image.local().data()),
             static_cast<socklen_t>(image.local().size())) != 0)
    return os_error("bind");
  return sys::set_tcp_repair(socket, sys::TcpRepair::off_silently);
}

Result<UniqueFd> RestoredSockets::make(const image::Socket& image) {
  if (!netns_.valid()) netns_ = TRY(sys::open_namespace(init_pid_, "net"));
  UniqueFd socket = TRY(sys::socket_in_netns(netns_.get(), static_cast<int>(image.family()),
                                             static_cast<int>(image.type()) | SOCK_CLOEXEC,
                                             static_cast<int>(image.protocol())));
  const Options options = options_of(image);
  TRY(sys::set_socket_options(socket.get(), options.early));
  if (image.protocol() != IPPROTO_TCP || image.family() == AF_NETLINK) {
    TRY(set_reuse_address(socket.get(), options.reuse_address));
    TRY(sys::set_socket_options(socket.get(), options.late));
    TRY(image.family() == AF_NETLINK ? restore_netlink(socket.get(), image)
                                     : restore_datagrams(socket.get(), netns_.get(), image));
    return socket;
  }
  const bool connecting = image.has_connection() && image.connection().state() == tcp_syn_sent;
  if (image.has_connection() && !connecting) {
    TRY(restore_connection(socket.get(), netns_.get(), image));
    connections_.push_back({TRY(duplicate(socket.get())), options.reuse_address});
  } else {
    TRY(bind(socket.get(), image));
  }
  TRY(sys::set_socket_options(socket.get(), options.late));
  if (connecting) connecting_.push_back({TRY(duplicate(socket.get())), image.peer()});
  if (image.has_connection() && !connecting)
    return socket;  // In repair mode it has a value of its own.
  if (image.listening()) {
    // What was accepted from it may have its address already.
    TRY(set_reuse_address(socket.get(), 1));
    if (::listen(socket.get(), static_cast<int>(image.backlog())) != 0) return os_error("listen");
  }
  TRY(set_reuse_address(socket.get(), options.reuse_address));
  return socket;
}

Result<void> RestoredSockets::release() {
  Result<void> done;
  for (const Connection& c : connections_)
    if (Result<void> gone = let_go(c.socket.get(), c.reuse_address); !gone.ok() && done.ok())
      done = std::move(gone);
  connections_.clear();
  for (const Connecting& c : connecting_)
    if (Result<void> begun = begin_to_connect(c.socket.get(), c.to); !begun.ok() && done.ok())
      done = std::move(begun);
  connecting_.clear();
  return done;
}

}  // namespace godwit::sockets
