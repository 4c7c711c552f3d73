// Threads are made and end all the time: the freeze must catch every one, at every stage of its
// life.
#include "tracee.h"
using namespace tracee;

int main() {
  std::atomic<uint64_t> started{0}, ended{0};
  {
    auto spawn = [&](std::atomic<bool>& stop) {
      while (!stop) {
        std::vector<std::thread> threads;
        for (int i = 0; i < 4; ++i) {
          ++started;
          threads.emplace_back([&] {
            uint64_t words[64];
            fill(words, sizeof words, started);
            sched_yield();
            ++ended;
          });
        }
        for (auto& t : threads) t.join();
      }
    };
    Background a(spawn), b(spawn);
    ready();
    wait_moved();
    uint64_t before = ended;
    check(eventually([&] { return ended > before + 100; }), "no more threads come");
  }
  same("threads ended", started.load(), ended.load());
  return ok();
}
