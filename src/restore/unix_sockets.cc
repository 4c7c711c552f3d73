// The order of things, and why:
//
//   connections     while no name is taken: an accepted socket shows its listener's name, so each
//                   comes out of a listener of that name, which is gone before the next one comes
//   files           every other open file of the capsule: messages may carry them
//   streams         what waits in them, by their peers; those that are no more go then
//   names           by bind(2), also of sockets that are connected already
//   datagrams       by the very sockets that sent: names of senders are looked up by who receives
//   listeners       and who waits in their backlogs
//   what is shut    after the queues
//   options         last: SO_PASSCRED would give names to who sends, filters would filter
//
// Connected sockets of streams and sequences of packets are made by socketpair(2) where both ends
// have the same credentials, which is quick: whether they were made so doesn't show. A peer that is
// gone is a ghost: it is made, sends what waits, and goes again.
//
// Of datagrams each socket has its own peer. Who has one takes messages of nobody else, so what
// came before is put into the queue before it is connected. A peer without a name can only have
// come of socketpair(2).
//
// Not as before: small pieces of a stream become one, and so take less of what the sender's buffer
// allows; timestamps of messages are those of the restore.

#include "restore/unix_sockets.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cstddef>

#include "base/io.h"
#include "restore/unix_messages.h"
#include "sys/namespaces.h"
#include "sys/socket_options.h"

namespace godwit::restore {
namespace {

constexpr mode_t any_listener_mode = 0777;

bool is_unix(const image::Socket& socket) { return socket.family() == AF_UNIX; }
bool is_of_datagrams(const image::Socket& socket) { return socket.type() == SOCK_DGRAM; }
bool has_name(const std::string& name) { return is_path_name(name) || is_abstract_name(name); }

Result<void> connect_to(int socket, int peer, const std::string& name) {
  const SocketNames::Address to = TRY(SocketNames::address_of(peer, name));
  if (::connect(socket, reinterpret_cast<const sockaddr*>(to.bytes.data()),
                static_cast<socklen_t>(to.bytes.size())) != 0)
    return os_error("connect of a Unix socket");
  return {};
}

Result<void> disconnect(int socket) {
  sockaddr nobody{};
  nobody.sa_family = AF_UNSPEC;
  if (::connect(socket, &nobody, sizeof nobody) != 0) return os_error("connect(AF_UNSPEC)");
  return {};
}

}  // namespace

UnixSockets::UnixSockets(int root_fd, int netns, PrivateFiles& files, SocketMakers& makers,
                         const image::Capsule& capsule)
    : root_fd_(root_fd), netns_(netns), names_(root_fd, files), makers_(makers), capsule_(capsule) {
  for (const image::Socket& socket : capsule.sockets())
    if (is_unix(socket)) entries_[socket.id()].image = &socket;
}

const std::string& UnixSockets::End::name() const {
  return is_ghost ? entry->image->peer() : entry->image->local();
}

const image::PeerCredentials& UnixSockets::End::credentials() const {
  return entry->image->unix_end().credentials();
}

// It shows a name without holding it. Ghosts may be many of one name, or of one that somebody else
// has by now.
bool UnixSockets::End::must_be_accepted() const {
  return is_abstract_name(name()) && (is_ghost || !entry->image->unix_end().holds_name());
}

Result<void> UnixSockets::make_all() {
  if (entries_.empty()) return {};
  TRY(make_connections());
  TRY(make_plain());
  return part_mates();
}

Result<void> UnixSockets::make_connections() {
  std::vector<Ends> pairs;
  std::map<std::string, std::vector<Ends>> accepted;  // By what their listener is like.
  for (auto& [id, entry] : entries_) {
    const image::UnixSocket& end = entry.image->unix_end();
    auto peer = entries_.find(end.peer());
    Entry* other = peer == entries_.end() ? nullptr : &peer->second;
    if (other == nullptr && !end.peer_gone()) continue;
    Ends ends{{&entry, false}, {other != nullptr ? other : &entry, other == nullptr}};
    if (is_of_datagrams(*entry.image)) {
      const bool taken = entry.mate != 0 || (other != nullptr && other->mate != 0);
      if (taken || other == &entry || has_name(ends.second.name())) continue;
      if (other != nullptr) entry.mate = end.peer(), other->mate = id;
      pairs.push_back(ends);
      continue;
    }
    if (entry.connected) continue;  // Made with its other end.
    entry.connected = true;
    if (other != nullptr) other->connected = true;
    const bool alike = same_credentials(ends.first.credentials(), ends.second.credentials());
    // The one that was accepted comes first: where nothing tells, one with a name.
    if (!ends.first.must_be_accepted() &&
        (ends.second.must_be_accepted() || !is_path_name(ends.first.name())))
      std::swap(ends.first, ends.second);
    if (ends.first.must_be_accepted() || (!alike && has_name(ends.first.name())))
      accepted[fmt::format("{} {} {}", entry.image->type(), ends.first.name(),
                           ends.second.credentials().SerializeAsString())]
          .push_back(ends);
    else
      pairs.push_back(ends);
  }
  TRY(make_pairs(pairs));
  for (const auto& [listener, all] : accepted) TRY(make_accepted(all));
  return {};
}

Result<void> UnixSockets::name_ghost(const End& end) {
  if (!end.is_ghost || !has_name(end.name())) return {};
  return names_.bind(end.fd().get(), end.name());
}

Result<void> UnixSockets::make_pairs(std::span<const Ends> all) {
  std::map<std::string, std::vector<const Ends*>> groups;  // Of one maker.
  for (const Ends& ends : all)
    groups[fmt::format("{} {}", ends.first.entry->image->type(),
                       ends.first.credentials().SerializeAsString())]
        .push_back(&ends);
  for (const auto& [maker, group] : groups) {
    const End& like = group.front()->first;
    std::vector<SocketMakers::Pair> made = TRY(makers_.pairs(
        like.credentials(), static_cast<int>(like.entry->image->type()), group.size()));
    for (std::size_t i = 0; i < group.size(); ++i) {
      const auto& [first, second] = *group[i];
      first.fd() = std::move(made[i].first);
      second.fd() = std::move(made[i].second);
      TRY(name_ghost(first));
      TRY(name_ghost(second));
    }
  }
  return {};
}

// `first` of all of them was accepted, by listeners that are alike.
Result<void> UnixSockets::make_accepted(std::span<const Ends> all) {
  const End& server = all.front().first;
  const std::string name = server.name();
  const std::vector<int> types(all.size() + 1, static_cast<int>(server.entry->image->type()));
  std::vector<UniqueFd> made = TRY(makers_.sockets(types));
  const UniqueFd listener = std::move(made.back());
  TRY(names_.bind(listener.get(), name));
  const SocketNames::Address address = TRY(SocketNames::address_of(listener.get(), name));
  if (address.way.valid() &&
      ::chmod(own_fd_path(address.way.get()).c_str(), any_listener_mode) != 0)
    return os_error("chmod of a socket's node");
  const SocketMakers::Listening listening{listener.get(), 1};
  TRY(makers_.listen(all.front().second.credentials(), std::span(&listening, 1)));
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto& [first, second] = all[i];
    second.fd() = std::move(made[i]);
    TRY(makers_.connect(first.credentials(), second.fd().get(), name, address.way.get()));
    first.fd().reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!first.fd()) return os_error("accept4");
    if (!first.is_ghost) first.entry->named = true;
    TRY(name_ghost(second));
  }
  return {};
}

Result<void> UnixSockets::make_plain() {
  std::vector<Entry*> plain;
  std::vector<int> types;
  for (auto& [id, entry] : entries_) {
    if (entry.fd.valid()) continue;
    plain.push_back(&entry);
    types.push_back(static_cast<int>(entry.image->type()));
  }
  std::vector<UniqueFd> made = TRY(makers_.sockets(types));
  for (std::size_t i = 0; i < plain.size(); ++i) plain[i]->fd = std::move(made[i]);
  return {};
}

// One of them may have another peer by now, or none.
Result<void> UnixSockets::part_mates() {
  for (auto& [id, entry] : entries_) {
    if (!is_of_datagrams(*entry.image)) continue;
    if (entry.ghost.valid()) entry.connected = true;
    if (entry.mate == 0) continue;
    entry.connected = entry.image->unix_end().peer() == entry.mate;
    if (!entry.connected) TRY(disconnect(entry.fd.get()));
  }
  return {};
}

// A name of the abstract namespace that a ghost has may be somebody else's now, who gets it when
// the ghost has gone.
UnixSockets::When UnixSockets::when_named(const image::Socket& socket) const {
  if (!is_abstract_name(socket.local())) return When::first;
  for (const auto& [id, other] : entries_)
    if (is_of_datagrams(*other.image) && other.image->unix_end().peer_gone() &&
        other.image->peer() == socket.local())
      return When::last;
  return When::first;
}

// When it and its peer can be found by their names.
UnixSockets::When UnixSockets::when_filled(const image::Socket& socket) const {
  auto peer = entries_.find(socket.unix_end().peer());
  const bool peer_last = peer != entries_.end() && when_named(*peer->second.image) == When::last;
  return peer_last ? When::last : when_named(socket);
}

Result<void> UnixSockets::name_all(When when) {
  for (auto& [id, entry] : entries_) {
    const image::Socket& socket = *entry.image;
    if (!has_name(socket.local()) || entry.named || when_named(socket) != when) continue;
    if (!socket.unix_end().holds_name())
      return make_error(Errc::invalid, "socket {} has the name of nobody", id);
    entry.named = true;
    Result<void> done =
        socket.unix_end().has_node()
            ? names_.bind_at(entry.fd.get(), socket.local(), socket.unix_end().node())
            : names_.bind(entry.fd.get(), socket.local());
    TRY(std::move(done).with(fmt::format("socket {}", id)));
  }
  return {};
}

Result<void> UnixSockets::listen_all() {
  std::map<std::string, std::vector<const Entry*>> groups;  // Of one maker.
  for (const auto& [id, entry] : entries_)
    if (entry.image->listening())
      groups[entry.image->unix_end().credentials().SerializeAsString()].push_back(&entry);
  for (const auto& [maker, group] : groups) {
    std::vector<SocketMakers::Listening> sockets;
    for (const Entry* entry : group) sockets.push_back({entry->fd.get(), entry->image->backlog()});
    TRY(makers_.listen(group.front()->image->unix_end().credentials(), sockets));
  }
  return {};
}

// What accept(2) will tell of them is who has them now.
image::PeerCredentials UnixSockets::holder_of(const image::Socket& socket) const {
  image::PeerCredentials holder;
  for (const image::OpenFile& file : capsule_.files()) {
    if (file.kind() != image::OpenFile::SOCKET || file.socket() != socket.id()) continue;
    for (const image::Process& process : capsule_.processes()) {
      const bool has = std::any_of(process.fds().begin(), process.fds().end(),
                                   [&](const image::Fd& fd) { return fd.file() == file.id(); });
      if (!has || process.threads().empty()) continue;
      const image::Creds& creds = process.threads(0).creds();
      holder.set_pid(process.pid()), holder.set_uid(creds.euid()), holder.set_gid(creds.egid());
      *holder.mutable_groups() = creds.groups();
      return holder;
    }
  }
  return holder;
}

Result<void> UnixSockets::wait_in_backlogs() {
  std::vector<const Entry*> clients;
  for (const auto& [id, entry] : entries_)
    if (entry.image->unix_end().accepted_of() != 0) clients.push_back(&entry);
  std::sort(clients.begin(), clients.end(), [](const Entry* a, const Entry* b) {
    return a->image->unix_end().backlog_place() < b->image->unix_end().backlog_place();
  });
  for (const Entry* client : clients) {
    const Entry& listener = entries_.at(client->image->unix_end().accepted_of());
    const SocketNames::Address address =
        TRY(SocketNames::address_of(listener.fd.get(), listener.image->local()));
    // It mustn't wait for room that never comes; its flags are set when it is opened.
    if (::fcntl(client->fd.get(), F_SETFL, O_NONBLOCK) != 0) return os_error("fcntl(F_SETFL)");
    TRY(makers_
            .connect(holder_of(*client->image), client->fd.get(), listener.image->local(),
                     address.way.get())
            .with(fmt::format("socket {}", client->image->id())));
  }
  return {};
}

Result<UniqueFd> UnixSockets::open(std::uint32_t id) const {
  auto entry = entries_.find(id);
  if (entry == entries_.end()) return make_error(Errc::invalid, "the image has no socket {}", id);
  return duplicate(entry->second.fd.get());
}

Result<void> UnixSockets::finish_all(const OpenedFiles& opened, Notes& notes) {
  for (auto& [id, entry] : entries_) {
    if (is_of_datagrams(*entry.image)) continue;
    TRY(fill_stream(entry, opened).with(fmt::format("socket {}", id)));
    TRY(let_ghost_go(entry, notes).with(fmt::format("socket {}", id)));
  }
  // From here no name is taken but by who has it.
  for (When when : {When::first, When::last}) {
    TRY(name_all(when));
    for (auto& [id, entry] : entries_) {
      if (!is_of_datagrams(*entry.image) || when_filled(*entry.image) != when) continue;
      TRY(fill_datagrams(entry, opened, notes).with(fmt::format("socket {}", id)));
      TRY(let_ghost_go(entry, notes).with(fmt::format("socket {}", id)));
    }
  }
  TRY(listen_all());
  TRY(wait_in_backlogs());
  for (auto& [id, entry] : entries_) {
    TRY(finish_one(entry).with(fmt::format("socket {}", id)));
    TRY(set_options(entry).with(fmt::format("socket {}", id)));
  }
  entries_.clear();
  return names_.clear();
}

Result<void> UnixSockets::fill_stream(Entry& entry, const OpenedFiles& opened) {
  if (entry.image->queue().empty()) return {};
  auto peer = entries_.find(entry.image->unix_end().peer());
  const int sender = peer != entries_.end() ? peer->second.fd.get() : entry.ghost.get();
  if (sender < 0) return make_error(Errc::invalid, "it has messages and no peer");
  for (const image::Message& message : entry.image->queue())
    TRY(send_message(sender, message, nullptr, opened, makers_.skeletons()));
  return {};
}

Result<UniqueFd> UnixSockets::stranger(int type, const std::string& name) {
  UniqueFd socket = TRY(sys::socket_in_netns(netns_, AF_UNIX, type, 0));
  if (has_name(name)) TRY(names_.bind(socket.get(), name));
  return socket;
}

// `made`: keeps one that isn't of the capsule.
Result<int> UnixSockets::sender_of(const Entry& entry, const image::Message& message,
                                   UniqueFd& made) {
  const bool named = has_name(message.from());
  for (const auto& [id, other] : entries_) {
    if (!is_of_datagrams(*other.image)) continue;
    const bool is = named ? other.image->local() == message.from()
                          : !has_name(other.image->local()) &&
                                other.image->unix_end().peer() == entry.image->id();
    if (is) return other.fd.get();
  }
  made = TRY(stranger(SOCK_DGRAM, message.from()));
  return made.get();
}

Result<void> UnixSockets::fill_datagrams(Entry& entry, const OpenedFiles& opened, Notes& notes) {
  const image::Socket& socket = *entry.image;
  auto peer = entries_.find(socket.unix_end().peer());
  // From where on all are of its peer.
  const std::string& peer_name =
      peer != entries_.end() ? peer->second.image->local() : socket.peer();
  const bool has_peer = peer != entries_.end() || socket.unix_end().peer_gone();
  int own = socket.queue_size();
  auto is_of_peer = [&](const image::Message& message) {
    return has_name(message.from()) ? message.from() == peer_name : !has_name(peer_name);
  };
  while (has_peer && own > 0 && is_of_peer(socket.queue(own - 1))) --own;
  SocketNames::Address to;
  if (has_name(socket.local()) && !socket.queue().empty())
    to = TRY(SocketNames::address_of(entry.fd.get(), socket.local()));
  const std::string* address = has_name(socket.local()) ? &to.bytes : nullptr;
  for (int i = 0; i < own; ++i) {
    UniqueFd made;
    const int sender = TRY(sender_of(entry, socket.queue(i), made));
    TRY(send_message(sender, socket.queue(i), address, opened, makers_.skeletons()));
  }
  if (!entry.connected) TRY(connect_datagrams(entry, notes));
  const int sender = peer != entries_.end() ? peer->second.fd.get() : entry.ghost.get();
  for (int i = own; i < socket.queue_size(); ++i)
    TRY(send_message(sender, socket.queue(i), address, opened, makers_.skeletons()));
  return {};
}

Result<void> UnixSockets::connect_datagrams(Entry& entry, Notes& notes) {
  const image::Socket& socket = *entry.image;
  const image::UnixSocket& end = socket.unix_end();
  auto peer = entries_.find(end.peer());
  if (peer != entries_.end())
    return connect_to(entry.fd.get(), peer->second.fd.get(), peer->second.image->local());
  if (end.peer_outside()) {
    const std::string path = path_of_name(socket.peer());
    Result<UniqueFd> node = open_in_root(root_fd_, path, O_PATH);
    if (node.ok()) {
      const std::string to = path_name(own_fd_path(node->get()));
      if (::connect(entry.fd.get(), reinterpret_cast<const sockaddr*>(to.data()),
                    static_cast<socklen_t>(to.size())) == 0)
        return {};
    }
    notes.push_back(fmt::format("nobody receives at {} here", path));
  }
  if (!end.peer_gone() && !end.peer_outside()) return {};
  entry.ghost = TRY(stranger(SOCK_DGRAM, socket.peer()));
  return connect_to(entry.fd.get(), entry.ghost.get(), socket.peer());
}

// Who goes with something unread resets the connection.
Result<void> UnixSockets::let_ghost_go(Entry& entry, Notes& notes) {
  const image::Socket& socket = *entry.image;
  if (socket.unix_end().reset() && (is_of_datagrams(socket) || !entry.ghost.valid()))
    notes.push_back(fmt::format("an error that waits in Unix socket {} isn't told", socket.id()));
  else if (socket.unix_end().reset() &&
           ::send(entry.fd.get(), "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
    return os_error("send to a peer that goes");
  entry.ghost.reset();
  return {};
}

Result<void> UnixSockets::finish_one(Entry& entry) {
  const image::Socket& socket = *entry.image;
  const int fd = entry.fd.get();
  const std::uint32_t shut = socket.shutdown() & 3;
  if (shut != 0 && ::shutdown(fd, static_cast<int>(shut) - 1) != 0)  // SHUT_RD, SHUT_WR, SHUT_RDWR
    return os_error(fmt::format("shutdown({})", shut - 1));
  struct stat st {};
  if (::fstat(fd, &st) != 0) return os_error("fstat");
  if ((st.st_mode & 07777) != socket.mode() && ::fchmod(fd, socket.mode()) != 0)
    return os_error("fchmod of a socket");
  return {};
}

// What is as in a new socket needs no call; of 40 options few are ever set.
Result<void> UnixSockets::set_options(const Entry& entry) {
  const int type = static_cast<int>(entry.image->type());
  auto [fresh, added] = fresh_options_.try_emplace(type);
  if (added) {
    const std::vector<UniqueFd> socket = TRY(makers_.sockets(std::span(&type, 1)));
    fresh->second = TRY(sys::socket_options(socket.front().get()));
  }
  std::vector<sys::SocketOption> options;
  for (const image::SocketOption& option : entry.image->options()) {
    sys::SocketOption wanted{static_cast<int>(option.level()), static_cast<int>(option.name()),
                             option.value()};
    const bool as_in_fresh =
        std::any_of(fresh->second.begin(), fresh->second.end(), [&](const sys::SocketOption& had) {
          return had.level == wanted.level && had.name == wanted.name && had.value == wanted.value;
        });
    // Buffers were made larger to send.
    if (!as_in_fresh || sys::is_late_option(wanted)) options.push_back(std::move(wanted));
  }
  return sys::set_socket_options(entry.fd.get(), options);
}

}  // namespace godwit::restore
