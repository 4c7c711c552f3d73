#include "sys/unix_socket.h"

#include <errno.h>
#include <linux/sockios.h>
#include <linux/un.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

namespace godwit::sys {
namespace {

constexpr int so_peergroups = 59;
constexpr std::size_t groups_usual = 32;
constexpr uid_t nobody = static_cast<uid_t>(-1);

Result<std::vector<gid_t>> peer_groups(int socket) {
  std::vector<gid_t> groups(groups_usual);
  socklen_t bytes = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
  int done = ::getsockopt(socket, SOL_SOCKET, so_peergroups, groups.data(), &bytes);
  if (done != 0 && errno == ERANGE) {  // It says how many there are.
    groups.resize(bytes / sizeof(gid_t));
    done = ::getsockopt(socket, SOL_SOCKET, so_peergroups, groups.data(), &bytes);
  }
  if (done != 0) return os_error("getsockopt(SO_PEERGROUPS)");
  groups.resize(bytes / sizeof(gid_t));
  return groups;
}

}  // namespace

Result<UniqueFd> netns_of_socket(int socket) {
  UniqueFd ns(::ioctl(socket, SIOCGSKNS));
  if (!ns) return os_error("ioctl(SIOCGSKNS)");
  return ns;
}

Result<UniqueFd> node_of_unix_socket(int socket) {
  UniqueFd node(::ioctl(socket, SIOCUNIXFILE));
  if (!node && errno != ENOENT) return os_error("ioctl(SIOCUNIXFILE)");
  return node;
}

Result<std::optional<PeerCredentials>> peer_credentials(int socket) {
  ucred peer{};
  socklen_t bytes = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0)
    return os_error("getsockopt(SO_PEERCRED)");
  if (peer.uid == nobody) return std::optional<PeerCredentials>();
  return std::optional(PeerCredentials{peer.pid, peer.uid, peer.gid, TRY(peer_groups(socket))});
}

}  // namespace godwit::sys
