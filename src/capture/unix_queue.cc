// How a queue is read, by the kernel's source (5.15 to 6.18):
// - MSG_PEEK alone shows a stream up to the first piece that descriptors came with, or that
// somebody
//   else wrote (SO_PASSCRED); of datagrams the first. SO_PEEK_OFF shows the rest. It belongs to the
//   socket, not to us, so it is used only where more is waiting, and is put back.
// - Descriptors come with the piece (of one send(2)) that holds their first byte, and bytes in
// front
//   of that piece are shown together with it; a shorter look shows as much and brings them all the
//   same. But a piece that can't be copied to its end isn't shown at all: so a look whose last byte
//   has no place in memory ends where the piece with the descriptors begins.
// - A look at an error takes it: so where poll(2) shows one, nothing is looked at that could meet
// it.
//   A stream meets it only behind its last byte, and SIOCINQ says which that is.
// - At the end of what a peer that is shut down has sent, a look gives 0 bytes, as an empty message
//   does. Where reading is shut down, it is the end.
// - An empty datagram behind others is marked as seen by the first look, and no later one with
//   SO_PEEK_OFF shows it: after an attempt that was given up, the next doesn't see it any more.

#include "capture/unix_queue.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <optional>

#include "base/io.h"
#include "sys/proc.h"
#include "sys/socket_options.h"

namespace godwit::capture {
namespace {

constexpr std::size_t message_bytes_usual = 2 * 1024;
constexpr std::size_t descriptors_max = 253;  // SCM_MAX_FD
constexpr std::size_t control_bytes = CMSG_SPACE(descriptors_max * sizeof(int)) + 512;
constexpr int scm_pidfd = 4;

struct Look {
  std::string data, from;
  std::size_t whole = 0;  // Bytes of the message, also of what found no room.
  std::vector<UniqueFd> files;
  std::optional<ucred> credentials;
};

void take_control(msghdr& header, Look& look) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET) continue;
    const std::size_t bytes = part->cmsg_len - CMSG_LEN(0);
    if (part->cmsg_type == SCM_CREDENTIALS)
      std::memcpy(&look.credentials.emplace(), CMSG_DATA(part), sizeof(ucred));
    if (part->cmsg_type != SCM_RIGHTS && part->cmsg_type != scm_pidfd) continue;
    for (std::size_t i = 0; i < bytes / sizeof(int); ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      UniqueFd owned(fd);
      if (part->cmsg_type == SCM_RIGHTS) look.files.push_back(std::move(owned));
    }
  }
}

class Queue {
 public:
  static Result<Queue> of(int socket) {
    const int offset = TRY(sys::int_socket_option(socket, SOL_SOCKET, SO_PEEK_OFF));
    return Queue(socket, offset);
  }
  Queue(Queue&& other) noexcept : socket_(other.socket_), before_(other.before_), now_(other.now_) {
    other.now_ = other.before_;
  }
  Queue& operator=(Queue&&) = delete;
  ~Queue() { (void)put_back(); }

  // Insisted on: the offset is the program's.
  Result<void> put_back() {
    Result<void> done = set(before_);
    for (int attempt = 1; !done.ok() && attempt < put_back_attempts_max; ++attempt)
      done = set(before_);
    return done;
  }

  // Of `bytes` at `offset` that one look brings together: how many are in front of the last piece.
  Result<std::size_t> bytes_before_last_piece(int offset, std::size_t bytes) {
    TRY(set(offset));
    now_ = moved;  // By the look.
    std::string data(bytes, '\0');
    iovec vectors[] = {{data.data(), bytes - 1}, {nowhere(), 1}};
    msghdr header{};
    header.msg_iov = vectors, header.msg_iovlen = std::size(vectors);
    const ssize_t n = ::recvmsg(socket_, &header, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && errno == EFAULT) return 0;  // There is only this one.
    if (n < 0) return os_error("recvmsg(MSG_PEEK)");
    if (static_cast<std::size_t>(n) >= bytes)
      return make_error(Errc::internal, "{} bytes were copied to nowhere", n);
    return static_cast<std::size_t>(n);
  }

  // Nothing: nothing more is there. `offset` -1: the beginning, by a look as anybody's.
  Result<std::optional<Look>> look(int offset, std::size_t bytes) {
    TRY(set(offset));
    if (offset >= 0) now_ = moved;
    Look look;
    look.data.resize(bytes);
    sockaddr_un from{};
    alignas(cmsghdr) char control[control_bytes];
    iovec vector{look.data.data(), look.data.size()};
    msghdr header{&from, sizeof from, &vector, 1, control, sizeof control, 0};
    const ssize_t n =
        ::recvmsg(socket_, &header, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EAGAIN) return std::optional<Look>();
    if (n < 0) return os_error("recvmsg(MSG_PEEK)");
    take_control(header, look);
    if ((header.msg_flags & MSG_CTRUNC) != 0)
      return make_error(Errc::internal, "descriptors in a message found no room here");
    look.whole = static_cast<std::size_t>(n);
    look.data.resize(std::min(look.whole, bytes));
    look.from.assign(reinterpret_cast<const char*>(&from), header.msg_namelen);
    return std::optional(std::move(look));
  }

 private:
  static constexpr int moved = -2, put_back_attempts_max = 5;
  // In the first page there is never any memory.
  static void* nowhere() { return reinterpret_cast<void*>(8); }
  Queue(int socket, int before) : socket_(socket), before_(before), now_(before) {}
  Result<void> set(int offset) {
    if (now_ == offset) return {};
    TRY(sys::set_int_socket_option(socket_, SOL_SOCKET, SO_PEEK_OFF, offset));
    now_ = offset;
    return {};
  }
  int socket_, before_, now_;
};

// The watches of an epoll instance name descriptors of whoever made it.
Result<bool> is_epoll(int fd) {
  return TRY(sys::read_link(own_fd_path(fd))) == "anon_inode:[eventpoll]";
}

Result<void> add_message(Look look, const Inside& inside, bool stream, image::Socket& out) {
  image::Message& message = *out.add_queue();
  message.set_data(std::move(look.data));
  if (!stream) message.set_from(std::move(look.from));
  if (look.credentials) {
    image::PeerCredentials& credentials = *message.mutable_credentials();
    credentials.set_pid(inside.pid(look.credentials->pid));
    credentials.set_uid(look.credentials->uid), credentials.set_gid(look.credentials->gid);
  }
  for (UniqueFd& file : look.files) {
    if (TRY(is_epoll(file.get())))
      return make_error(Errc::refused,
                        "an epoll instance waits in it to be received, which can't move");
    message.add_files(TRY(inside.describe(std::move(file))));
  }
  return {};
}

Result<void> read_stream(Queue& queue, std::size_t bytes, const Inside& inside,
                         image::Socket& out) {
  // By an offset only if one look isn't enough; a program's own offset makes any look one by it.
  for (std::size_t at = 0; at < bytes;) {
    const int offset = at == 0 ? -1 : static_cast<int>(at);
    std::optional<Look> look = TRY(queue.look(offset, bytes - at));
    if (!look || look->data.empty())
      return make_error(Errc::internal, "a queue of {} bytes ends after {}", bytes, at);
    std::size_t before = 0;
    if (!look->files.empty())
      before = TRY(queue.bytes_before_last_piece(static_cast<int>(at), look->data.size()));
    at += look->data.size();
    if (before > 0) {
      Look plain;
      plain.data = look->data.substr(0, before);
      plain.credentials = look->credentials;
      TRY(add_message(std::move(plain), inside, true, out));
      look->data.erase(0, before);
    }
    TRY(add_message(std::move(*look), inside, true, out));
  }
  return {};
}

// `bytes`: of the first one at least. `ends`: reading is shut down, so that a look shows 0 bytes
// behind the last message.
Result<void> read_messages(Queue& queue, std::size_t bytes, bool ends, const Inside& inside,
                           image::Socket& out) {
  std::size_t at = 0, room = std::max(bytes, message_bytes_usual);
  for (bool first = true;; first = false) {
    std::optional<Look> look = TRY(queue.look(first ? -1 : static_cast<int>(at), room));
    while (look && look->whole > room) {
      room = look->whole;
      look = TRY(queue.look(first ? -1 : static_cast<int>(at), room));
    }
    if (!look || (ends && look->whole == 0)) return {};
    at += look->whole;
    TRY(add_message(std::move(*look), inside, false, out));
  }
}

Result<short> poll_of(int socket) {
  pollfd asked{socket, static_cast<short>(POLLIN | POLLPRI | POLLRDHUP), 0};
  if (::poll(&asked, 1, 0) < 0) return os_error("poll of a socket");
  return asked.revents;
}

}  // namespace

Result<bool> has_unread(int socket) { return (TRY(poll_of(socket)) & POLLIN) != 0; }

Result<bool> has_urgent_data(int socket) { return (TRY(poll_of(socket)) & POLLPRI) != 0; }

Result<void> read_unix_queue(const SocketEntry& socket, const Inside& inside, image::Socket& out) {
  const int fd = socket.copy.get();
  const bool stream = socket.type == SOCK_STREAM;
  const short shows = TRY(poll_of(fd));
  if ((shows & POLLPRI) != 0)
    return make_error(Errc::refused, "urgent data (MSG_OOB) waits in it, which can't move");
  const bool error = (shows & POLLERR) != 0;
  if (error) out.mutable_unix_end()->set_reset(true);
  if ((shows & POLLIN) == 0 || out.listening()) return {};
  int bytes = 0;
  if (::ioctl(fd, FIONREAD, &bytes) != 0) {
    if (errno == EINVAL) return {};  // Not connected.
    return os_error("ioctl(FIONREAD) of a socket");
  }
  if (stream && bytes == 0) return {};
  if (!stream && error) {
    if (bytes == 0) return {};
    return make_error(Errc::busy, "an error waits to be told before its messages");
  }
  Queue queue = TRY(Queue::of(fd));
  const bool ends = socket.type == SOCK_SEQPACKET && (shows & POLLRDHUP) != 0;
  TRY(stream ? read_stream(queue, static_cast<std::size_t>(bytes), inside, out)
             : read_messages(queue, static_cast<std::size_t>(bytes), ends, inside, out));
  return queue.put_back();
}

}  // namespace godwit::capture
