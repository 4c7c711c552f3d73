#include "restore/socket_makers.h"

#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>

#include "restore/socket_names.h"

namespace godwit::restore {
namespace {

constexpr std::size_t at_once_max = 64;  // Descriptors of the skeleton.
constexpr auto unchanged = static_cast<std::uint64_t>(-1);

std::uint64_t arg(int n) { return static_cast<std::uint64_t>(n); }

// Effective ones only: the saved ones lead back.
void become(Batch& b, const image::PeerCredentials& as) {
  const std::vector<gid_t> groups(as.groups().begin(), as.groups().end());
  b.call(SYS_setgroups, "setgroups", {groups.size(), b.put(std::as_bytes(std::span(groups)))});
  b.call(SYS_setresgid, "setresgid", {unchanged, as.gid(), unchanged});
  b.call(SYS_setresuid, "setresuid", {unchanged, as.uid(), unchanged});
}

void become_root(Batch& b) {
  b.call(SYS_setresuid, "setresuid", {unchanged, 0, unchanged});
  b.call(SYS_setresgid, "setresgid", {unchanged, 0, unchanged});
  b.call(SYS_setgroups, "setgroups", {0, 0});
}

Result<void> close_there(Skeleton& skeleton, std::span<const int> fds) {
  Batch b = skeleton.batch();
  for (int fd : fds) b.call(SYS_close, "close", {arg(fd)});
  return skeleton.run(b);
}

}  // namespace

bool same_credentials(const image::PeerCredentials& a, const image::PeerCredentials& b) {
  return a.pid() == b.pid() && a.uid() == b.uid() && a.gid() == b.gid() &&
         std::equal(a.groups().begin(), a.groups().end(), b.groups().begin(), b.groups().end());
}

Result<Skeleton*> SocketMakers::maker(const image::PeerCredentials& as) {
  if (as.pid() != 0)
    if (Skeleton* skeleton = find_(as.pid())) return skeleton;
  Skeleton* any = find_(0);
  if (any == nullptr) return make_error(Errc::invalid, "no process");
  std::string note =
      fmt::format("the process that connected a Unix socket has ended; SO_PEERCRED says {} instead",
                  any->pid());
  if (std::find(notes_.begin(), notes_.end(), note) == notes_.end())
    notes_.push_back(std::move(note));
  return any;
}

Result<std::vector<UniqueFd>> SocketMakers::sockets(std::span<const int> types) {
  std::vector<UniqueFd> made;
  if (types.empty()) return made;
  Skeleton* skeleton = find_(0);
  if (skeleton == nullptr) return make_error(Errc::invalid, "no process");
  for (std::size_t done = 0; done < types.size(); done += at_once_max) {
    auto part = types.subspan(done, std::min(at_once_max, types.size() - done));
    Batch b = skeleton->batch();
    for (int type : part) b.call(SYS_socket, "socket", {AF_UNIX, arg(type | SOCK_CLOEXEC), 0});
    TRY(skeleton->run(b));
    std::vector<int> there;
    for (std::size_t i = 0; i < part.size(); ++i) {
      there.push_back(static_cast<int>(b.result(i)));
      made.push_back(TRY(skeleton->fetch_fd(there.back())));
    }
    TRY(close_there(*skeleton, there));
  }
  return made;
}

Result<std::vector<SocketMakers::Pair>> SocketMakers::pairs(const image::PeerCredentials& as,
                                                            int type, std::size_t count) {
  using Ends = std::array<std::int32_t, 2>;
  std::vector<Pair> made;
  Skeleton& skeleton = *TRY(maker(as));
  while (made.size() < count) {
    Batch b = skeleton.batch();
    become(b, as);
    std::vector<std::uint64_t> places;
    for (std::size_t i = made.size(); i < count && places.size() < at_once_max / 2; ++i) {
      places.push_back(b.reserve(sizeof(Ends)));
      b.call(SYS_socketpair, "socketpair", {AF_UNIX, arg(type | SOCK_CLOEXEC), 0, places.back()});
    }
    become_root(b);
    TRY(skeleton.run(b));
    std::vector<int> there;
    for (std::uint64_t place : places) {
      const Ends ends = b.value_at<Ends>(place);
      there.insert(there.end(), ends.begin(), ends.end());
      UniqueFd first = TRY(skeleton.fetch_fd(ends[0]));
      made.emplace_back(std::move(first), TRY(skeleton.fetch_fd(ends[1])));
    }
    TRY(close_there(skeleton, there));
  }
  return made;
}

Result<void> SocketMakers::listen(const image::PeerCredentials& as,
                                  std::span<const Listening> sockets) {
  Skeleton& skeleton = *TRY(maker(as));
  for (std::size_t done = 0; done < sockets.size(); done += at_once_max) {
    auto part = sockets.subspan(done, std::min(at_once_max, sockets.size() - done));
    std::vector<int> ours;
    for (const Listening& socket : part) ours.push_back(socket.socket);
    const std::vector<int> there = TRY(skeleton.pass_fds(ours));
    Batch b = skeleton.batch();
    become(b, as);
    for (std::size_t i = 0; i < part.size(); ++i)
      b.call(SYS_listen, "listen", {arg(there[i]), part[i].backlog});
    become_root(b);
    TRY(skeleton.run(b));
    TRY(close_there(skeleton, there));
  }
  return {};
}

Result<void> SocketMakers::connect(const image::PeerCredentials& as, int socket,
                                   const std::string& address, int node) {
  Skeleton& skeleton = *TRY(maker(as));
  std::vector<int> ours = {socket};
  if (node >= 0) ours.push_back(node);
  const std::vector<int> there = TRY(skeleton.pass_fds(ours));
  const std::string to = node >= 0 ? path_name(fmt::format("/proc/self/fd/{}", there[1])) : address;
  Batch b = skeleton.batch();
  become(b, as);
  const std::uint64_t at = b.put(std::as_bytes(std::span(to)));
  b.call(SYS_connect, "connect", {arg(there[0]), at, to.size()});
  become_root(b);
  TRY(skeleton.run(b));
  return close_there(skeleton, there);
}

}  // namespace godwit::restore
