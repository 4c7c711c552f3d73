#include "sockets/datagrams.h"

#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>

#include "sockets/packets.h"
#include "sys/socket_options.h"

namespace godwit::sockets {
namespace {

constexpr std::size_t datagram_bytes_max = 64 * 1024;
constexpr int errors_max = 4;

// Where it is bound to every address, which one it was sent to is forgotten.
std::string to_somewhere(std::string local) {
  sockaddr_storage address{};
  std::memcpy(&address, local.data(), std::min(local.size(), sizeof address));
  if (address.ss_family == AF_INET) {
    auto& in = reinterpret_cast<sockaddr_in&>(address);
    if (in.sin_addr.s_addr == INADDR_ANY) in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  } else if (auto& in6 = reinterpret_cast<sockaddr_in6&>(address);
             address.ss_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&in6.sin6_addr)) {
    in6.sin6_addr = in6addr_loopback;
  }
  return std::string(reinterpret_cast<const char*>(&address), local.size());
}

bool is_mapped(const std::string& address) {
  sockaddr_in6 in6{};
  std::memcpy(&in6, address.data(), std::min(address.size(), sizeof in6));
  return in6.sin6_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr);
}

// A socket of IPv6 that takes in IPv4, too: bound to every address, it was an address of IPv4.
std::string destination(const std::string& local, const std::string& from) {
  std::string to = to_somewhere(local);
  if (!is_mapped(from) || is_mapped(to)) return to;
  sockaddr_in6 in6{};
  std::memcpy(&in6, to.data(), std::min(to.size(), sizeof in6));
  in6.sin6_addr = {};
  in6.sin6_addr.s6_addr[10] = in6.sin6_addr.s6_addr[11] = 0xff;
  in6.sin6_addr.s6_addr[12] = 127, in6.sin6_addr.s6_addr[15] = 1;
  return std::string(reinterpret_cast<const char*>(&in6), sizeof in6);
}

}  // namespace

Result<void> describe_datagrams(int socket, image::Socket& out) {
  const int before = TRY(sys::int_socket_option(socket, SOL_SOCKET, SO_PEEK_OFF));
  TRY(sys::set_int_socket_option(socket, SOL_SOCKET, SO_PEEK_OFF, 0));
  Result<void> done;
  std::string data(datagram_bytes_max, '\0');
  int errors_taken = 0;
  while (done.ok()) {
    sockaddr_storage from{};
    socklen_t from_bytes = sizeof from;
    const ssize_t n = ::recvfrom(socket, data.data(), data.size(), MSG_PEEK | MSG_DONTWAIT,
                                 reinterpret_cast<sockaddr*>(&from), &from_bytes);
    if (n < 0 && errno == EAGAIN) break;
    // An answer to what it has sent (ECONNREFUSED...) waits in front, once; this look takes it.
    if (n < 0 && ++errors_taken <= errors_max) continue;
    if (n < 0) {
      done = os_error("recvfrom(MSG_PEEK)");
      break;
    }
    image::Message& message = *out.add_queue();
    message.set_data(data.data(), static_cast<std::size_t>(n));
    message.set_from(&from, from_bytes);
  }
  TRY(sys::set_int_socket_option(socket, SOL_SOCKET, SO_PEEK_OFF, before));
  return done;
}

Result<void> restore_datagrams(int socket, int netns, const image::Socket& image) {
  auto address = [](const std::string& bytes) {
    return reinterpret_cast<const sockaddr*>(bytes.data());
  };
  auto size = [](const std::string& bytes) { return static_cast<socklen_t>(bytes.size()); };
  if (has_port(image.local()) && ::bind(socket, address(image.local()), size(image.local())) != 0)
    return os_error("bind");
  if (!image.peer().empty() && ::connect(socket, address(image.peer()), size(image.peer())) != 0)
    return os_error("connect");
  for (const image::Message& message : image.queue())
    TRY(send_datagram(netns,
                      TRY(from_peer(destination(image.local(), message.from()), message.from())),
                      message.data()));
  return {};
}

}  // namespace godwit::sockets
