// A loop that holds a pattern in the vector registers, for the tracees of SSE, AVX and AVX-512.
#pragma once

#include "tracee.h"

namespace tracee {

inline std::atomic<uint32_t> vector_stop{0};

// `hold(in, out)` loads its registers from `in`, spins until vector_stop, and stores them to `out`.
template <typename Hold>
int vector_tracee(size_t bytes, Hold hold) {
  constexpr int threads_count = 3;
  constexpr size_t bytes_max = 4096;
  need(bytes <= bytes_max, "bytes");
  struct alignas(64) State {
    uint8_t in[bytes_max], out[bytes_max];
  };
  static State states[threads_count];
  std::vector<std::thread> threads;
  for (int i = 0; i < threads_count; ++i) {
    fill(states[i].in, bytes, i * 100'000);
    threads.emplace_back([&, i] { hold(states[i].in, states[i].out); });
  }
  ready();
  wait_moved();
  vector_stop = 1;
  for (auto& t : threads) t.join();
  for (State& s : states) {
    for (size_t at = 0; at < bytes; ++at)
      if (!check(s.in[at] == s.out[at], "byte %zu of the registers was 0x%x, is 0x%x", at, s.in[at],
                 s.out[at]))
        break;
  }
  return ok();
}

}  // namespace tracee
