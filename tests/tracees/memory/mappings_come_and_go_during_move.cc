// A thread maps, fills, checks and unmaps at changing addresses and sizes all the time.
#include "tracee.h"
using namespace tracee;

int main() {
  std::atomic<uint64_t> rounds{0};
  auto churn = [&](std::atomic<bool>& stop) {
    constexpr size_t live_max = 64;
    struct Live {
      uint8_t* at;
      size_t bytes;
      uint64_t seed;
    };
    std::vector<Live> live;
    auto drop = [&](size_t i) {
      bool good = check_filled("short-lived area", live[i].at, live[i].bytes, live[i].seed);
      need(munmap(live[i].at, live[i].bytes) == 0, "munmap");
      live.erase(live.begin() + static_cast<long>(i));
      return good;
    };
    uint64_t seed = gettid_now() * 1'000'003ULL;
    for (; !stop; ++seed, ++rounds) {
      if (live.size() == live_max && !drop(mix(seed) % live_max)) return;
      size_t bytes = (mix(seed) % 64 + 1) * page_size;
      live.push_back({map(bytes), bytes, seed});
      fill(live.back().at, bytes, seed);
    }
    while (!live.empty())
      if (!drop(0)) return;
  };
  {
    Background a(churn), b(churn);
    ready();
    wait_moved();
    uint64_t before = rounds;
    check(eventually([&] { return rounds > before + 1000; }), "the threads stand still");
  }
  return ok();
}
