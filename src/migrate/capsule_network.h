// A capsule's traffic while it moves: where capture, the gate and sockets/ meet.
#pragma once

#include <span>

#include "capsule/shell.h"
#include "capture/connections.h"
#include "sockets/held_sockets.h"

namespace godwit::migrate {

// The source's side. Borrows the shell.
class CapsuleNetwork : public capture::Connections {
 public:
  explicit CapsuleNetwork(capsule::Shell& shell)
      : held_(shell.init_pid(), [&shell](bool open) { return shell.gate(open); }) {}

  Result<void> hold(std::span<const int> sockets) override { return held_.hold(sockets); }
  Result<std::string> reason_against(int socket) override {
    return sockets::reason_against(socket);
  }
  Result<void> describe(int socket, image::Socket& out) override {
    return held_.describe(socket, out);
  }

  Result<void> wait_until_idle(std::int64_t us_max) { return held_.wait_until_idle(us_max); }
  Result<void> release() { return held_.release(); }
  void commit() { held_.commit(); }

 private:
  sockets::HeldSockets held_;
};

// After the death of a worker, before the program goes on, if it doesn't yet: its sockets work.
Result<void> recover_traffic(capsule::Shell& shell);

}  // namespace godwit::migrate
