// What capture needs of somebody who can hold network traffic still and tell what a connection
// consists of. `migrate` implements it with sockets/ and the capsule's gate.
#pragma once

#include <span>

#include "base/result.h"
#include "image/image.pb.h"

namespace godwit::capture {

class Connections {
 public:
  virtual ~Connections() = default;

  // All sockets of the tree but those of AF_UNIX, as copies of ours that live until the tree goes
  // on or is given up. From here nothing comes in or goes out. Errc::busy: not now (somebody is
  // being accepted just then), traffic flows again; the same may succeed when the program has gone
  // on for a while. Preconditions: the tree stands still, also if we die.
  virtual Result<void> hold(std::span<const int> sockets) = 0;

  // Why it can't move ("is a TCP socket of which..."); empty: it can. Preconditions: the tree
  // stands still.
  virtual Result<std::string> reason_against(int socket) = 0;

  // Fills what is specific to its protocol. Preconditions: it is held.
  virtual Result<void> describe(int socket, image::Socket& out) = 0;
};

}  // namespace godwit::capture
