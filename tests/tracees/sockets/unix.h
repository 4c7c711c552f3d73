// Unix sockets within a program, for the tracees of this folder.
#pragma once

#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "tcp.h"

namespace tracee {

// A name that begins with '@' is of the abstract namespace; "" is none.
inline Address unix_name(const std::string& name) {
  Address address;
  auto& out = reinterpret_cast<sockaddr_un&>(address.storage);
  out.sun_family = AF_UNIX;
  need(name.size() < sizeof out.sun_path, "a name of %zu bytes", name.size());
  memcpy(out.sun_path, name.data(), name.size());
  address.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  if (!name.empty() && name[0] == '@') out.sun_path[0] = 0;
  if (!name.empty() && name[0] != '@') ++address.bytes;
  return address;
}

inline std::string in_words(const Address& address) {
  const auto& name = reinterpret_cast<const sockaddr_un&>(address.storage);
  constexpr size_t start = offsetof(sockaddr_un, sun_path);
  if (address.bytes <= start) return "";
  std::string text(name.sun_path, address.bytes - start);
  if (text[0] == 0)
    text[0] = '@';
  else
    text.resize(strlen(text.c_str()));
  return text;
}

// "-" where there is no peer.
inline std::string unix_name_of(int fd, bool peer = false) {
  Address address;
  address.bytes = sizeof address.storage;
  if ((peer ? getpeername : getsockname)(fd, address.at(), &address.bytes) != 0)
    return errno == ENOTCONN ? "-" : "?";
  return in_words(address);
}

inline int unix_socket(int type, const std::string& name = "") {
  const int fd = socket(AF_UNIX, type, 0);
  need(fd >= 0, "socket");
  Address address = unix_name(name);
  if (!name.empty()) need(bind(fd, address.at(), address.bytes) == 0, "bind(%s)", name.c_str());
  return fd;
}

inline int unix_listener(int type, const std::string& name, int backlog = 16) {
  const int fd = unix_socket(type, name);
  need(listen(fd, backlog) == 0, "listen");
  return fd;
}

inline int connect_to(int fd, const std::string& name) {
  Address address = unix_name(name);
  return connect(fd, address.at(), address.bytes);
}

// A connection through `listener`: client, server.
inline Pair unix_pair(int listener, int type, const std::string& name,
                      const std::string& client = "") {
  Pair pair;
  pair.client = unix_socket(type, client);
  need(connect_to(pair.client, name) == 0, "connect(%s)", name.c_str());
  pair.server = accept(listener, nullptr, nullptr);
  need(pair.server >= 0, "accept");
  return pair;
}

inline bool passes(int from, int to, const std::string& text) {
  std::string came(text.size() + 10, '\0');
  if (!check(
          send(from, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()),
          "send(%s): errno %d", text.c_str(), errno))
    return false;
  const ssize_t n = recv(to, came.data(), came.size(), 0);
  return check(n == static_cast<ssize_t>(text.size()), "recv gave %zd of %zu bytes, errno %d", n,
               text.size(), errno) &&
         same("message", text, came.substr(0, static_cast<size_t>(n)));
}

struct Received {
  ssize_t bytes = -1;
  int error = 0;
  std::string data, from;
  std::vector<int> files;
  bool has_credentials = false;
  ucred credentials{};
  int flags = 0;
};

inline Received receive(int fd, size_t bytes = 4096, int flags = MSG_DONTWAIT) {
  Received came;
  came.data.resize(bytes);
  alignas(cmsghdr) char control[2048];
  Address from;
  iovec vector{came.data.data(), bytes};
  msghdr header{&from.storage, sizeof from.storage, &vector, 1, control, sizeof control, 0};
  came.bytes = recvmsg(fd, &header, flags | MSG_CMSG_CLOEXEC);
  came.error = came.bytes < 0 ? errno : 0;
  came.flags = header.msg_flags;
  came.data.resize(came.bytes < 0 ? 0 : static_cast<size_t>(came.bytes));
  from.bytes = header.msg_namelen;
  came.from = in_words(from);
  if (came.bytes < 0) return came;
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_type == SCM_CREDENTIALS) {
      came.has_credentials = true;
      memcpy(&came.credentials, CMSG_DATA(part), sizeof came.credentials);
    } else if (part->cmsg_type == SCM_RIGHTS) {
      came.files.resize((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
      memcpy(came.files.data(), CMSG_DATA(part), came.files.size() * sizeof(int));
    }
  }
  return came;
}

inline ssize_t send_with(int fd, const std::string& data, const std::vector<int>& files,
                         const ucred* credentials = nullptr, const std::string& to = "") {
  alignas(cmsghdr) char control[2048] = {};
  iovec vector{const_cast<char*>(data.data()), data.size()};
  Address address = unix_name(to);
  msghdr header{};
  header.msg_iov = &vector, header.msg_iovlen = 1;
  if (!to.empty()) header.msg_name = address.at(), header.msg_namelen = address.bytes;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  size_t used = 0;
  cmsghdr* part = CMSG_FIRSTHDR(&header);
  auto put = [&](int type, const void* what, size_t bytes) {
    part = reinterpret_cast<cmsghdr*>(control + used);
    part->cmsg_level = SOL_SOCKET, part->cmsg_type = type, part->cmsg_len = CMSG_LEN(bytes);
    memcpy(CMSG_DATA(part), what, bytes);
    used += CMSG_SPACE(bytes);
  };
  if (credentials != nullptr) put(SCM_CREDENTIALS, credentials, sizeof *credentials);
  if (!files.empty()) put(SCM_RIGHTS, files.data(), files.size() * sizeof(int));
  header.msg_controllen = used;
  if (used == 0) header.msg_control = nullptr;
  return sendmsg(fd, &header, MSG_NOSIGNAL);
}

}  // namespace tracee
