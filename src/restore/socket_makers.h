// Unix sockets remember who made them: SO_PEERCRED is whoever called listen(2), connect(2) or
// socketpair(2). So these calls are made by skeletons, with the credentials that are wanted.
#pragma once

#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "image/image.pb.h"
#include "restore/skeleton.h"
#include "restore/thread_state.h"

namespace godwit::restore {

// 0: any; null: there is none with this pid.
using FindSkeleton = std::function<Skeleton*(pid_t pid)>;

class SocketMakers {
 public:
  SocketMakers(FindSkeleton find, Notes& notes) : find_(std::move(find)), notes_(notes) {}

  // Not connected; in the capsule's network namespace. By whom doesn't matter.
  Result<std::vector<UniqueFd>> sockets(std::span<const int> types);

  using Pair = std::pair<UniqueFd, UniqueFd>;
  Result<std::vector<Pair>> pairs(const image::PeerCredentials& as, int type, std::size_t count);

  struct Listening {
    int socket;  // Of ours, bound.
    std::uint32_t backlog;
  };
  Result<void> listen(const image::PeerCredentials& as, std::span<const Listening> sockets);

  // `socket`, of ours, connects to `address`, a sockaddr_un. `node`: then by this node instead.
  Result<void> connect(const image::PeerCredentials& as, int socket, const std::string& address,
                       int node);

  const FindSkeleton& skeletons() const { return find_; }

 private:
  Result<Skeleton*> maker(const image::PeerCredentials& as);

  FindSkeleton find_;
  Notes& notes_;
};

bool same_credentials(const image::PeerCredentials& a, const image::PeerCredentials& b);

}  // namespace godwit::restore
