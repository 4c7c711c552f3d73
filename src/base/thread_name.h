// Threads tell in /proc/PID/task/TID/comm what they are for: gRPC's have names of its own, and a
// thread that is left over can then be told from its pools, which grow and shrink.
#pragma once

#include <pthread.h>

namespace godwit {

// Of the calling thread. At most 15 characters, as the kernel keeps them.
template <int size>
void name_thread(const char (&name)[size]) {
  static_assert(size <= 16);
  pthread_setname_np(pthread_self(), name);  // Fails only for longer names.
}

}  // namespace godwit
