// 4 MiB of frames on the main stack, and on a thread's stack, verified while they unwind.
#include "tracee.h"
using namespace tracee;

constexpr int depth_max = 4000;

template <typename Wait>
[[gnu::noinline]] void descend(int depth, Wait wait) {
  volatile uint64_t frame[128];
  for (int i = 0; i < 128; ++i) frame[i] = mix(depth * 128 + i);
  if (depth < depth_max)
    descend(depth + 1, wait);
  else
    wait();
  for (int i = 0; i < 128; ++i)
    if (!check(frame[i] == mix(depth * 128 + i), "frame %d, word %d", depth, i)) return;
}

int main() {
  std::atomic<bool> down{false}, go{false};
  std::thread thread([&] {
    descend(0, [&] {
      down = true;
      while (!go) usleep(1000);
    });
  });
  need(eventually([&] { return down.load(); }), "thread's descent");
  descend(0, [] {
    ready();
    wait_moved();
  });
  go = true;
  thread.join();
  return ok();
}
