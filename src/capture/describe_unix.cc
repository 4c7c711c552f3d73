// sock_diag(7) tells of every Unix socket of a network namespace its state, the inode of its peer,
// and of those that listen whose connections wait. What has no inode there has no descriptor:
// - A connected socket whose peer has none waits in the backlog of a listening one that names it,
// or
//   has lost its peer, which shut down both halves of it.
// - What a client has sent before it is accepted is in a socket without a descriptor: it can be
//   neither read nor left behind. Without anything in it the connection can be made again.
//
// A name in the file system is a path, as it was given to bind(2), and an inode. They part company
// when the program renames or removes it, or has said a relative path: the kernel leads to the
// inode (SIOCUNIXFILE). An accepted socket shows the name of the one that listened, without holding
// it. Whether a name of the abstract namespace is held shows when it is tried to be taken.

#include "capture/describe_unix.h"

#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <set>

#include "base/io.h"
#include "capture/describe_files.h"
#include "capture/unix_queue.h"
#include "sys/namespaces.h"
#include "sys/proc.h"
#include "sys/sock_diag.h"
#include "sys/unix_socket.h"

namespace godwit::capture {
namespace {

constexpr std::size_t path_at = offsetof(sockaddr_un, sun_path);
constexpr std::uint8_t both_halves = 3;

bool is_connected(const sys::UnixSocketDiag& diag) {
  return diag.type != SOCK_DGRAM && diag.state == TCP_ESTABLISHED;
}

bool is_abstract(const std::string& name) { return name.size() > path_at && name[path_at] == 0; }
bool is_path(const std::string& name) { return name.size() > path_at && name[path_at] != 0; }

Result<std::string> peer_name(int socket) {
  sockaddr_un name{};
  socklen_t bytes = sizeof name;
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&name), &bytes) != 0) {
    if (errno == ENOTCONN) return std::string();
    return os_error("getpeername");
  }
  return std::string(reinterpret_cast<const char*>(&name), bytes);
}

// All sockets of the tree's network namespace.
class Neighbourhood {
 public:
  static Result<Neighbourhood> of(int socket) {
    Neighbourhood all;
    all.netns_ = TRY(sys::netns_of_socket(socket));
    sys::SockDiag diag = TRY(sys::SockDiag::open_in(all.netns_.get()));
    all.sockets_ = TRY(diag.unix_sockets());
    for (const sys::UnixSocketDiag& socket_of_all : all.sockets_)
      if (socket_of_all.inode != 0) all.by_inode_[socket_of_all.inode] = &socket_of_all;
    for (const sys::UnixSocketDiag& listener : all.sockets_)
      for (std::uint32_t client : listener.waiting) all.waits_at_[client] = &listener;
    return all;
  }

  const sys::UnixSocketDiag* find(std::uint64_t inode) const {
    auto found = by_inode_.find(static_cast<std::uint32_t>(inode));
    return found == by_inode_.end() ? nullptr : found->second;
  }
  // In whose backlog this one waits.
  const sys::UnixSocketDiag* waits_at(std::uint32_t inode) const {
    auto found = waits_at_.find(inode);
    return found == waits_at_.end() ? nullptr : found->second;
  }
  int netns() const { return netns_.get(); }

 private:
  UniqueFd netns_;
  std::vector<sys::UnixSocketDiag> sockets_;
  std::map<std::uint32_t, const sys::UnixSocketDiag*> by_inode_, waits_at_;
};

// Where the inode behind a name is now, if it is anywhere.
Result<std::optional<image::FileRef>> node_of(int socket) {
  UniqueFd node = TRY(sys::node_of_unix_socket(socket));
  if (!node.valid()) return std::optional<image::FileRef>();
  struct stat st {};
  if (::fstat(node.get(), &st) != 0) return os_error("fstat of a socket's node");
  if (st.st_nlink == 0) return std::optional<image::FileRef>();
  bool deleted = false;
  image::FileRef ref;
  ref.set_path(without_deleted_mark(TRY(sys::read_link(own_fd_path(node.get()))), deleted));
  ref.set_mode(st.st_mode);
  // A second name that it had got is left, and nothing tells which.
  if (deleted) ref.set_path(fmt::format("another name than {}", ref.path()));
  return std::optional(ref);
}

// Something that nobody has read yet.
Result<bool> has_sent(int socket) {
  int bytes = 0;
  if (::ioctl(socket, SIOCOUTQ, &bytes) != 0) return os_error("ioctl(SIOCOUTQ) of a socket");
  return bytes != 0;
}

bool travels(const std::string& path) {
  return path.starts_with("/tmp/") || path.starts_with("/dev/shm/");
}

// Somebody can reach it by its node: who is connected can't be connected to.
bool needs_node(const sys::UnixSocketDiag& diag) { return !is_connected(diag); }

// Empty: it can move.
Result<std::string> reason_against(const SocketEntry& entry, const Neighbourhood& all) {
  const int socket = entry.copy.get();
  const sys::UnixSocketDiag* diag = all.find(entry.st.st_ino);
  if (diag == nullptr) return std::string("is a Unix socket of another network namespace");
  if (TRY(has_urgent_data(socket)))
    return std::string("is a Unix socket with urgent data (MSG_OOB), which can't move");
  if (needs_node(*diag))
    if (std::optional<image::FileRef> node = TRY(node_of(socket)); node && !travels(node->path()))
      return fmt::format("is a Unix socket bound to {}, which doesn't travel", node->path());
  if (!diag->peer) return std::string();
  if (is_connected(*diag)) {
    if (*diag->peer != 0 && all.find(*diag->peer) == nullptr)
      return std::string("is connected to a Unix socket outside of the capsule, so it can't move");
    const bool gone = *diag->peer == 0 && diag->shutdown == both_halves;
    if (*diag->peer == 0 && !gone && all.waits_at(diag->inode) == nullptr)
      return std::string("waits at a Unix socket outside of the capsule, so it can't move");
    return std::string();
  }
  if (*diag->peer != 0 && all.find(*diag->peer) == nullptr && !is_path(TRY(peer_name(socket))))
    return std::string("sends to a Unix socket outside of the capsule, which has no path");
  return std::string();
}

class Linker {
 public:
  Linker(std::span<const SocketEntry* const> sockets, const Inside& inside,
         const Neighbourhood& all, std::map<std::uint32_t, image::Socket>& described)
      : inside_(inside), all_(all), described_(described) {
    for (const SocketEntry* socket : sockets)
      entries_[static_cast<std::uint32_t>(socket->st.st_ino)] = socket;
    // Who isn't connected holds its name for sure.
    for (const SocketEntry* socket : sockets) {
      const sys::UnixSocketDiag* diag = all.find(socket->st.st_ino);
      if (diag != nullptr && !is_connected(*diag)) held_.insert(name_of(*socket));
    }
  }

  Result<void> link(const SocketEntry& entry) {
    if (std::string why = TRY(reason_against(entry, all_)); !why.empty())
      return make_error(Errc::refused, "{}", why);
    const sys::UnixSocketDiag& diag = *all_.find(entry.st.st_ino);
    image::Socket& out = described_.at(entry.id);
    image::UnixSocket& end = *out.mutable_unix_end();
    out.set_shutdown(diag.shutdown);
    out.set_backlog(diag.backlog);
    TRY(link_peer(diag, end));
    TRY(describe_name(entry, diag, out));
    TRY(describe_credentials(entry.copy.get(), end));
    return diag.state == TCP_LISTEN ? link_waiting(entry, diag) : Result<void>();
  }

 private:
  using Name = std::pair<int, std::string>;  // A name is held for sockets of one type.
  Name name_of(const SocketEntry& entry) const {
    return {entry.type, described_.at(entry.id).local()};
  }

  Result<void> link_peer(const sys::UnixSocketDiag& diag, image::UnixSocket& end) {
    if (!diag.peer || all_.waits_at(diag.inode) != nullptr) return {};
    if (*diag.peer == 0) {
      end.set_peer_gone(true);
      return {};
    }
    auto known = entries_.find(*diag.peer);
    if (known != entries_.end()) {
      end.set_peer(known->second->id);
      return {};
    }
    if (is_connected(diag))
      return make_error(Errc::refused, "is connected to a Unix socket outside of the capsule");
    end.set_peer_outside(true);
    return {};
  }

  Result<void> describe_name(const SocketEntry& entry, const sys::UnixSocketDiag& diag,
                             image::Socket& out) {
    image::UnixSocket& end = *out.mutable_unix_end();
    if (is_path(out.local()) && needs_node(diag))
      if (std::optional<image::FileRef> node = TRY(node_of(entry.copy.get())))
        *end.mutable_node() = std::move(*node);
    if (!is_abstract(out.local()))
      end.set_holds_name(out.local().size() > path_at);
    else if (needs_node(diag))
      end.set_holds_name(true);
    else if (!held_.contains(name_of(entry)) && TRY(is_taken(entry.type, out.local())))
      end.set_holds_name(held_.insert(name_of(entry)).second);
    return {};
  }

  Result<bool> is_taken(int type, const std::string& name) {
    UniqueFd probe = TRY(sys::socket_in_netns(all_.netns(), AF_UNIX, type, 0));
    if (::bind(probe.get(), reinterpret_cast<const sockaddr*>(name.data()),
               static_cast<socklen_t>(name.size())) == 0)
      return false;
    if (errno != EADDRINUSE) return os_error("bind to an abstract name");
    return true;
  }

  Result<void> describe_credentials(int socket, image::UnixSocket& end) {
    std::optional<sys::PeerCredentials> peer = TRY(sys::peer_credentials(socket));
    if (!peer) return {};
    image::PeerCredentials& out = *end.mutable_credentials();
    out.set_pid(inside_.pid(peer->pid));
    out.set_uid(peer->uid), out.set_gid(peer->gid);
    for (gid_t group : peer->groups) out.add_groups(group);
    return {};
  }

  Result<void> link_waiting(const SocketEntry& entry, const sys::UnixSocketDiag& diag) {
    std::uint32_t place = 0;
    for (std::uint32_t client : diag.waiting) {
      auto known = entries_.find(client);
      if (known == entries_.end() && client == 0)
        return make_error(Errc::busy, "somebody who has gone waits to be accepted");
      if (known == entries_.end())
        return make_error(Errc::refused, "somebody outside of the capsule waits to be accepted");
      if (TRY(has_sent(known->second->copy.get())))
        return make_error(Errc::busy, "somebody waits to be accepted and has sent something");
      image::UnixSocket& waits = *described_.at(known->second->id).mutable_unix_end();
      waits.set_accepted_of(entry.id);
      waits.set_backlog_place(place++);
    }
    return {};
  }

  const Inside& inside_;
  const Neighbourhood& all_;
  std::map<std::uint32_t, image::Socket>& described_;
  std::map<std::uint32_t, const SocketEntry*> entries_;  // By inode.
  std::set<Name> held_;
};

}  // namespace

Result<std::vector<std::string>> unix_reasons(std::span<const SocketEntry* const> sockets) {
  std::vector<std::string> reasons;
  if (sockets.empty()) return reasons;
  const Neighbourhood all = TRY(Neighbourhood::of(sockets.front()->copy.get()));
  for (const SocketEntry* socket : sockets)
    if (std::string why = TRY(reason_against(*socket, all)); !why.empty())
      reasons.push_back(fmt::format("{} {}", socket->whose, why));
  return reasons;
}

Result<void> connect_unix(std::span<const SocketEntry* const> sockets, const Inside& inside,
                          std::map<std::uint32_t, image::Socket>& described) {
  if (sockets.empty()) return {};
  const Neighbourhood all = TRY(Neighbourhood::of(sockets.front()->copy.get()));
  Linker linker(sockets, inside, all, described);
  for (const SocketEntry* socket : sockets) TRY(linker.link(*socket).with(socket->whose));
  return {};
}

}  // namespace godwit::capture
