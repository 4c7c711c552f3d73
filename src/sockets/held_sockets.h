// The source's side: the sockets of a tree that stands, held still so that they can be read, and
// let go again unless the capsule was given up.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "image/image.pb.h"

namespace godwit::sockets {

class HeldSockets {
 public:
  // Lets traffic of the capsule pass, or not.
  using Gate = std::function<Result<void>(bool open)>;

  // `init_pid`: a process in the capsule's network.
  HeldSockets(pid_t init_pid, Gate gate) : init_pid_(init_pid), gate_(std::move(gate)) {}
  HeldSockets(HeldSockets&&) = delete;
  ~HeldSockets();  // Lets go, unless committed.

  // While the program runs: until nothing of what makes hold() answer that it is busy goes on, or
  // for at most this long.
  Result<void> wait_until_idle(std::int64_t us_max) const;

  // Closes the gate, too, also where there is no socket. Errc::busy: somebody is connecting, or
  // waits to be accepted, or data of a connection that the program has closed is still on its way;
  // nothing is held then. Preconditions: nothing is held, and the program stands.
  Result<void> hold(std::span<const int> sockets);
  Result<void> describe(int socket, image::Socket& out) const;
  // Traffic flows again; what was lost meanwhile is sent again.
  Result<void> release();
  // From here the sockets end without a word when the program's and these copies are closed.
  void commit() { committed_ = true; }

 private:
  Result<void> take(std::span<const int> sockets);
  void drain() const;
  Result<void> check_idle();
  Result<std::string> what_goes_on() const;

  pid_t init_pid_;
  Gate gate_;
  struct Connection {
    UniqueFd socket;
    int reuse_address;  // SO_REUSEADDR, which repair mode forgets.
  };
  std::vector<Connection> connections_;
  std::vector<UniqueFd> listeners_;
  std::vector<UniqueFd> connecting_;
  std::map<std::uint64_t, std::string> connecting_to_;  // By inode.
  bool closed_ = false;                                 // The gate.
  bool committed_ = false;
};

// Why it can't move, in words that follow its name; empty: it can.
Result<std::string> reason_against(int socket);

// After the death of whoever held or made it, or by them: leaves repair mode, allows packets. What
// isn't such a socket isn't touched. Repair mode forgets SO_REUSEADDR; without it a server that
// begins again wouldn't get its address while connections remain, so that is the usual value.
Result<void> let_go(int socket, int reuse_address = 1);

}  // namespace godwit::sockets
