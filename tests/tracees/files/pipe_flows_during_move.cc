// Numbers flow through pipes from thread to thread while the program is moved: single ones, and
// blocks that are larger than the pipe. None is lost, doubled or torn.
#include "tracee.h"
using namespace tracee;

namespace {

// A short count is no error: signal(7) lets a stop end a write that has begun.
void put(int fd, const void* from, size_t bytes) {
  for (auto* at = static_cast<const char*>(from); bytes > 0;) {
    ssize_t n = write(fd, at, bytes);
    if (n <= 0) return void(check(false, "write gave %zd, errno %d", n, errno));
    at += n;
    bytes -= static_cast<size_t>(n);
  }
}

struct Flow {
  explicit Flow(size_t words) : block(words) {
    need(pipe(ends) == 0, "pipe");
    if (words == 1) need(fcntl(ends[1], F_SETPIPE_SZ, 4096) > 0, "F_SETPIPE_SZ");
  }
  void write_until(std::atomic<bool>& stop) {
    for (uint64_t next = 0; !stop; next += block.size()) {
      for (size_t i = 0; i < block.size(); ++i) block[i] = mix(next + i);
      put(ends[1], block.data(), block.size() * 8);
      written = next + block.size();
      // Without a pace the two flows take two processors and starve who moves them.
      if (block.size() > 1 || next % 256 == 0) usleep(2'000);
    }
    close(ends[1]);
  }
  void read_all() {
    char bytes[5000];
    uint64_t word = 0;
    size_t have = 0;
    for (ssize_t n; (n = read(ends[0], bytes, sizeof bytes)) > 0;)
      for (ssize_t i = 0; i < n; ++i) {
        reinterpret_cast<char*>(&word)[have++] = bytes[i];
        if (have < 8) continue;
        have = 0;
        if (word != mix(came) && !check(false, "number %lu is wrong", came.load())) return;
        ++came;
      }
    check(have == 0, "%zu bytes too many", have);
  }

  int ends[2];
  std::vector<uint64_t> block;
  std::atomic<uint64_t> written{0}, came{0};
};

}  // namespace

int main() {
  Flow single(1), blocks(40'000);
  std::thread readers[] = {std::thread([&] { single.read_all(); }),
                           std::thread([&] { blocks.read_all(); })};
  Background first([&](std::atomic<bool>&stop) { single.write_until(stop); }),
      second([&](std::atomic<bool>&stop) { blocks.write_until(stop); });
  need(eventually([&] { return single.came > 1000 && blocks.came > 100'000; }), "nothing flows");
  ready();
  wait_moved();
  const uint64_t before[] = {single.came, blocks.came};
  check(eventually(
            [&] { return single.came > before[0] + 1000 && blocks.came > before[1] + 100'000; }),
        "it doesn't flow any more");
  first.finish();
  second.finish();
  for (std::thread& reader : readers) reader.join();
  same("numbers", single.written.load(), single.came.load());
  same("numbers in blocks", blocks.written.load(), blocks.came.load());
  return ok();
}
