// Runs a fuzz target without a fuzzer: 50,000 inputs from a fixed seed, or the files named as
// arguments (to replay what a fuzzer found).
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
// A start that gets past the first checks, for the target to define.
std::vector<std::uint8_t> fuzz_seed_input();

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  }
  if (argc > 1) return 0;
  std::mt19937_64 random(1);
  for (int i = 0; i < 50'000; ++i) {
    std::vector<std::uint8_t> input = fuzz_seed_input();
    for (std::uint64_t flips = random() % 6; flips > 0; --flips)
      input[random() % input.size()] = static_cast<std::uint8_t>(random());
    if (random() % 4 == 0) input.resize(random() % (input.size() + 1));
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::puts("ok");
  return 0;
}
