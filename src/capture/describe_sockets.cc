#include "capture/describe_sockets.h"

#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/user.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "capture/describe_unix.h"
#include "capture/unix_queue.h"
#include "sys/socket_options.h"

namespace godwit::capture {
namespace {

Result<std::string> address(int socket, bool peer) {
  sockaddr_storage storage{};
  socklen_t bytes = sizeof storage;
  auto* at = reinterpret_cast<sockaddr*>(&storage);
  if ((peer ? ::getpeername(socket, at, &bytes) : ::getsockname(socket, at, &bytes)) != 0) {
    if (peer && (errno == ENOTCONN || errno == EINVAL)) return std::string();
    return os_error(peer ? "getpeername" : "getsockname");
  }
  return std::string(reinterpret_cast<const char*>(&storage), bytes);
}

Result<void> describe_common(const SocketEntry& entry, image::Socket& out) {
  const int socket = entry.copy.get();
  out.set_id(entry.id);
  out.set_family(static_cast<std::uint32_t>(entry.family));
  out.set_type(static_cast<std::uint32_t>(entry.type));
  out.set_protocol(static_cast<std::uint32_t>(entry.protocol));
  out.set_mode(entry.st.st_mode & 07777);
  out.set_uid(entry.st.st_uid), out.set_gid(entry.st.st_gid);
  out.set_local(TRY(address(socket, false)));
  out.set_peer(TRY(address(socket, true)));
  out.set_listening(TRY(sys::int_socket_option(socket, SOL_SOCKET, SO_ACCEPTCONN)) != 0);
  for (sys::SocketOption& option : TRY(sys::socket_options(socket))) {
    image::SocketOption& made = *out.add_options();
    made.set_level(static_cast<std::uint32_t>(option.level));
    made.set_name(static_cast<std::uint32_t>(option.name));
    made.set_value(std::move(option.value));
  }
  return {};
}

}  // namespace

Result<std::uint32_t> SocketTable::add(UniqueFd copy, const struct stat& st,
                                       const std::string& whose) {
  auto [known, added] = ids_.emplace(std::pair(st.st_dev, st.st_ino), ids_.size() + 1);
  if (!added) return known->second;
  SocketEntry& entry = entries_[known->second];
  entry.id = known->second;
  entry.st = st;
  entry.whose = whose;
  entry.family = TRY(sys::int_socket_option(copy.get(), SOL_SOCKET, SO_DOMAIN));
  entry.type = TRY(sys::int_socket_option(copy.get(), SOL_SOCKET, SO_TYPE));
  entry.protocol = TRY(sys::int_socket_option(copy.get(), SOL_SOCKET, SO_PROTOCOL));
  entry.copy = std::move(copy);
  return entry.id;
}

Result<bool> SocketTable::may_carry_descriptors() const {
  for (const auto& [id, entry] : entries_)
    if (entry.family == AF_UNIX && TRY(has_unread(entry.copy.get()))) return true;
  return false;
}

Result<std::vector<std::string>> SocketTable::reasons(Connections* connections) const {
  std::vector<std::string> reasons;
  std::vector<const SocketEntry*> unixes;
  for (const auto& [id, entry] : entries_) {
    if (Result<std::vector<sys::SocketOption>> options = sys::socket_options(entry.copy.get());
        !options.ok()) {
      if (options.error().code() != Errc::refused) return std::move(options).error();
      reasons.push_back(fmt::format("{}: {}", entry.whose, options.error().what()));
    }
    if (entry.family == AF_UNIX) {
      unixes.push_back(&entry);
      continue;
    }
    const std::string against = connections != nullptr
                                    ? TRY(connections->reason_against(entry.copy.get()))
                                    : "is a socket, which can't move without a network";
    if (!against.empty()) reasons.push_back(fmt::format("{} {}", entry.whose, against));
  }
  for (std::string& reason : TRY(unix_reasons(unixes))) reasons.push_back(std::move(reason));
  return reasons;
}

// What comes along as a message of a Unix socket may be a socket again: so these are all known
// before the others are held.
Result<void> SocketTable::describe(Connections* connections, const Inside& inside,
                                   image::Capsule& capsule) {
  std::map<std::uint32_t, image::Socket> described;
  for (bool more = true; more;) {
    std::vector<const SocketEntry*> fresh;
    for (const auto& [id, entry] : entries_)
      if (entry.family == AF_UNIX && !described.contains(id)) fresh.push_back(&entry);
    more = !fresh.empty();
    for (const SocketEntry* entry : fresh) {
      image::Socket& out = described[entry->id];
      TRY(describe_common(*entry, out).with(entry->whose));
      TRY(read_unix_queue(*entry, inside, out).with(entry->whose));
    }
  }
  std::vector<const SocketEntry*> unixes;
  std::vector<int> others;
  for (const auto& [id, entry] : entries_) {
    if (entry.family == AF_UNIX)
      unixes.push_back(&entry);
    else
      others.push_back(entry.copy.get());
  }
  TRY(connect_unix(unixes, inside, described));
  if (!others.empty() && connections == nullptr)
    return make_error(Errc::refused, "a socket can't move without a network");
  // Before: what holds them shows in their options.
  for (const auto& [id, entry] : entries_)
    if (entry.family != AF_UNIX) TRY(describe_common(entry, described[id]).with(entry.whose));
  if (connections != nullptr) TRY(connections->hold(others));
  for (const auto& [id, entry] : entries_)
    if (entry.family != AF_UNIX)
      TRY(connections->describe(entry.copy.get(), described[id]).with(entry.whose));
  for (auto& [id, socket] : described) *capsule.add_sockets() = std::move(socket);
  return {};
}

void finish_connects(image::Capsule& capsule) {
  constexpr std::uint64_t interrupted = static_cast<std::uint64_t>(-512);  // ERESTARTSYS
  std::set<std::uint32_t> connected;                                       // OpenFile ids.
  for (const image::OpenFile& file : capsule.files())
    for (const image::Socket& socket : capsule.sockets())
      if (file.socket() == socket.id() && socket.has_connection() &&
          socket.connection().state() != TCP_SYN_SENT)
        connected.insert(file.id());
  if (connected.empty()) return;
  for (image::Process& process : *capsule.mutable_processes()) {
    for (image::Thread& thread : *process.mutable_threads()) {
      user_regs_struct regs{};
      std::memcpy(&regs, thread.regs().data(), std::min(sizeof regs, thread.regs().size()));
      if (regs.orig_rax != SYS_connect || regs.rax != interrupted) continue;
      const bool stands =
          std::any_of(process.fds().begin(), process.fds().end(), [&](const image::Fd& fd) {
            return fd.fd() == static_cast<int>(regs.rdi) && connected.contains(fd.file());
          });
      if (!stands) continue;
      regs.rax = 0, regs.orig_rax = static_cast<std::uint64_t>(-1);
      thread.set_regs(&regs, sizeof regs);
    }
  }
}

}  // namespace godwit::capture
