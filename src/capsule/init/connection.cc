#include "capsule/init/connection.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

namespace godwit::init {

void Packet::clear() {
  for (int i = 0; i < fd_count; ++i)
    if (fds[i] >= 0) ::close(fds[i]);
  fd_count = 0;
  header = {};
}

int Packet::take_fd(int index) {
  if (index >= fd_count) return -1;
  int fd = fds[index];
  fds[index] = -1;
  return fd;
}

void Connection::open(int socket) {
  Packet* storage = answer;
  *this = Connection{};
  answer = storage;
  fd = socket;
}

void Connection::close() {
  ::close(fd);
  if (answer_waits) answer->clear();
  open(-1);
}

Connection::Sent Connection::send(const capsule::Header& header, const iovec& payload,
                                  const int* fds, int fd_count) {
  capsule::Header head = header;
  head.length = static_cast<std::uint32_t>(payload.iov_len);
  iovec parts[2] = {{&head, sizeof(head)}, payload};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * capsule::message_fds_max)];
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = payload.iov_len > 0 ? 2 : 1;
  if (fd_count > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * static_cast<std::size_t>(fd_count));
    cmsghdr* entry = CMSG_FIRSTHDR(&message);
    entry->cmsg_level = SOL_SOCKET;
    entry->cmsg_type = SCM_RIGHTS;
    entry->cmsg_len = CMSG_LEN(sizeof(int) * static_cast<std::size_t>(fd_count));
    std::memcpy(CMSG_DATA(entry), fds, sizeof(int) * static_cast<std::size_t>(fd_count));
  }
  while (::sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    if (errno == EINTR) continue;
    // ETOOMANYREFS: too many descriptors on their way to this user's processes; some will arrive.
    if (errno == EAGAIN || errno == ENOBUFS || errno == ETOOMANYREFS) return Sent::full;
    return Sent::gone;
  }
  return Sent::done;
}

Connection::Sent Connection::event(capsule::Message type, std::uint64_t a, std::uint64_t b,
                                   const iovec& payload) {
  capsule::Header header{static_cast<std::uint32_t>(type), 0, a, b};
  return send(header, payload, nullptr, 0);
}

Connection::Received Connection::receive(Packet& out) {
  out.clear();
  iovec parts[2] = {{&out.header, sizeof(out.header)}, {out.payload, sizeof(out.payload)}};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * capsule::message_fds_max)];
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t n;
  do {
    n = ::recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && errno == EAGAIN) return Received::nothing;
  if (n <= 0) return Received::gone;
  for (cmsghdr* entry = CMSG_FIRSTHDR(&message); entry != nullptr;
       entry = CMSG_NXTHDR(&message, entry)) {
    if (entry->cmsg_level != SOL_SOCKET || entry->cmsg_type != SCM_RIGHTS) continue;
    std::size_t count = (entry->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int received;
      std::memcpy(&received, CMSG_DATA(entry) + i * sizeof(int), sizeof(int));
      out.add_fd(received);
    }
  }
  // A client that doesn't keep to the protocol is cut off.
  bool whole = n == static_cast<ssize_t>(sizeof(out.header) + out.header.length) &&
               (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
  if (whole) return Received::packet;
  out.clear();
  return Received::gone;
}

}  // namespace godwit::init
