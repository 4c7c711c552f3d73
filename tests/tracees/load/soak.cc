// For hundreds of moves in a row: memory that three threads write and verify all the time, a baton
// that goes round between them, and clocks that a fourth one watches. What it has seen it says at
// the end, as one line of JSON.
//
// CLOCK_MONOTONIC must never go back, and never go on by more than CLOCK_REALTIME did: each look is
// taken between two of CLOCK_REALTIME, so that being off the processor in between is no excuse.
#include <algorithm>
#include <memory>

#include "tracee.h"
using namespace tracee;

constexpr size_t threads_count = 3;
constexpr size_t part_bytes = 4 * MiB;

// Pages of `memory` in turn: what the round before left there, then what this round leaves.
void write_and_verify(size_t index, uint8_t* memory, std::atomic<uint64_t>& pages,
                      std::atomic<bool>& stop) {
  constexpr size_t part_pages = part_bytes / page_size;
  auto seed = [&](uint64_t round, size_t page) {
    return mix(mix(index * part_pages + page) + round);
  };
  for (size_t page = 0; page < part_pages; ++page)
    fill(memory + page * page_size, page_size, seed(0, page));
  for (uint64_t round = 1; !stop; ++round) {
    for (size_t page = 0; page < part_pages; ++page) {
      uint8_t* at = memory + page * page_size;
      if (!check_filled("page", at, page_size, seed(round - 1, page))) return;
      fill(at, page_size, seed(round, page));
      ++pages;
    }
    usleep(2'000);
  }
}

// Goes round for ever: each thread waits for its turn and gives the next one theirs.
struct Baton {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t passed = PTHREAD_COND_INITIALIZER;
  uint64_t turns = 0;

  void take_turns(size_t index, std::atomic<bool>& stop) {
    pthread_mutex_lock(&mutex);
    while (!stop) {
      timespec until =
          timespec_of_us(now_us(CLOCK_REALTIME) + 1'000'000);  // So that `stop` is seen.
      if (turns % threads_count != index) {
        pthread_cond_timedwait(&passed, &mutex, &until);
        continue;
      }
      ++turns;
      pthread_cond_broadcast(&passed);
      pthread_mutex_unlock(&mutex);
      usleep(500);
      pthread_mutex_lock(&mutex);
    }
    pthread_mutex_unlock(&mutex);
  }
};

struct Clocks {
  int64_t behind_us = 0;  // How much less of CLOCK_MONOTONIC went by than of CLOCK_REALTIME.
  int64_t gap_us_max = 0;
  uint64_t looks = 0;

  void watch(std::atomic<bool>& stop) {
    constexpr int64_t step_ns_max = 100'000;  // CLOCK_REALTIME may be set by others, by a little.
    const int64_t first_real = now_ns(CLOCK_REALTIME), first = now_ns();
    int64_t last_before = first_real, last = first;
    while (!stop) {
      int64_t before = now_ns(CLOCK_REALTIME), now = now_ns(), after = now_ns(CLOCK_REALTIME);
      check(now >= last, "CLOCK_MONOTONIC went back by %lld ns",
            static_cast<long long>(last - now));
      check(now - last <= after - last_before + step_ns_max,
            "CLOCK_MONOTONIC went on by %lld ns, CLOCK_REALTIME by at most %lld",
            static_cast<long long>(now - last), static_cast<long long>(after - last_before));
      gap_us_max = std::max(gap_us_max, (before - last_before) / 1000);
      last_before = before;
      last = now;
      ++looks;
      usleep(100);
    }
    behind_us = (last_before - first_real - (last - first)) / 1000;
  }
};

int main() {
  std::atomic<uint64_t> pages{0};
  Baton baton;
  Clocks clocks;
  uint8_t* memory = map(threads_count * part_bytes);
  uint64_t turns_before = 0;
  {
    std::vector<std::unique_ptr<Background>> all;
    for (size_t i = 0; i < threads_count; ++i) {
      uint8_t* part = memory + i * part_bytes;
      all.push_back(std::make_unique<Background>(
          [&, i, part](std::atomic<bool>& stop) { write_and_verify(i, part, pages, stop); }));
      all.push_back(std::make_unique<Background>(
          [&, i](std::atomic<bool>& stop) { baton.take_turns(i, stop); }));
    }
    all.push_back(
        std::make_unique<Background>([&](std::atomic<bool>& stop) { clocks.watch(stop); }));
    auto turns = [&] {
      pthread_mutex_lock(&baton.mutex);
      uint64_t now = baton.turns;
      pthread_mutex_unlock(&baton.mutex);
      return now;
    };
    ready();
    wait_moved();
    turns_before = turns();
    const uint64_t pages_before = pages;
    check(eventually([&] { return turns() > turns_before + threads_count; }), "the baton is lost");
    check(eventually([&] { return pages > pages_before; }), "nobody writes any more");
  }
  say("{\"pages\":%llu,\"turns\":%llu,\"looks\":%llu,\"gap_us_max\":%lld,\"monotonic_behind_us\":%"
      "lld}",
      static_cast<unsigned long long>(pages), static_cast<unsigned long long>(baton.turns),
      static_cast<unsigned long long>(clocks.looks), static_cast<long long>(clocks.gap_us_max),
      static_cast<long long>(clocks.behind_us));
  return ok();
}
