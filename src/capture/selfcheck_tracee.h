// What the self-checking program of the tests shares with the test.
#pragma once

#include <atomic>
#include <cstdint>

struct SelfCheck {
  static constexpr std::size_t jobs_max = 128;
  std::atomic<std::uint64_t> beats[jobs_max];
  std::atomic<int> jobs;  // Set when all threads exist.
  std::atomic<int> stop;
  char error[256];
};
