// The target's side: sockets made as they were, and still until the program starts.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "image/image.pb.h"

namespace godwit::sockets {

class RestoredSockets {
 public:
  // `init_pid`: a process in the capsule's network.
  explicit RestoredSockets(pid_t init_pid) : init_pid_(init_pid) {}

  // Preconditions: no packet leaves the capsule's network, and none comes in.
  Result<UniqueFd> make(const image::Socket& image);

  // Connections begin to flow. Preconditions: packets come and go. Goes on to the last one; the
  // first error is returned.
  Result<void> release();

 private:
  Result<void> bind(int socket, const image::Socket& image) const;

  pid_t init_pid_;
  UniqueFd netns_;
  struct Connection {
    UniqueFd socket;
    int reuse_address;
  };
  std::vector<Connection> connections_;
  struct Connecting {
    UniqueFd socket;
    std::string to;
  };
  std::vector<Connecting> connecting_;
};

}  // namespace godwit::sockets
