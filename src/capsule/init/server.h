// The life of init: clients, children, relay.
#pragma once

#include "capsule/init/children.h"

namespace godwit::init {

// Never returns. `listener`: a listening SOCK_SEQPACKET socket.
[[noreturn]] void serve(int listener, const TreeEntrance& tree);

}  // namespace godwit::init
