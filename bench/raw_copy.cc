// raw_copy: the yardstick of bench/migrate. Copies N bytes over two TCP connections (cubic, no
// delay) into memory that is there already, and says how long it took. Nothing else: what a
// migration of as many bytes can at best cost on this link.
//
//   raw_copy receive PORT MIB      prints {"mib":..,"us":..} when all has arrived
//   raw_copy send ADDRESS PORT MIB
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int streams = 2;
constexpr std::size_t chunk_bytes = 1 << 20;

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

void tune(int fd) {
  int on = 1;
  if (::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) fail("TCP_NODELAY");
  if (::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5) != 0) fail("TCP_CONGESTION");
}

// Random content, present: neither zero pages nor page faults are part of the figure.
unsigned char* prefaulted(std::size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) fail("mmap");
  auto* words = static_cast<std::uint64_t*>(memory);
  std::uint64_t x = 88172645463325252ull;
  for (std::size_t i = 0; i < bytes / 8; i += 8) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    words[i] = x;
  }
  return static_cast<unsigned char*>(memory);
}

void receive(std::uint16_t port, std::size_t mib) {
  int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int on = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  tune(listener);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fail("bind");
  if (::listen(listener, streams) != 0) fail("listen");
  std::size_t each = mib * chunk_bytes / streams;
  unsigned char* memory = prefaulted(each * streams);
  std::printf("ready\n");
  std::fflush(stdout);
  std::vector<std::thread> threads;
  std::atomic<std::int64_t> begin_us{0};
  for (int i = 0; i < streams; ++i) {
    int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) fail("accept");
    threads.emplace_back([&, fd, i] {
      unsigned char* at = memory + static_cast<std::size_t>(i) * each;
      for (std::size_t left = each; left > 0;) {
        ssize_t n = ::recv(fd, at, std::min(left, chunk_bytes), 0);
        if (n <= 0) fail("recv");
        std::int64_t zero = 0;
        begin_us.compare_exchange_strong(
            zero, std::chrono::duration_cast<std::chrono::microseconds>(
                      std::chrono::steady_clock::now().time_since_epoch())
                      .count());
        at += n;
        left -= static_cast<std::size_t>(n);
      }
      ::close(fd);
    });
  }
  for (std::thread& t : threads) t.join();
  std::int64_t end_us = std::chrono::duration_cast<std::chrono::microseconds>(
                            std::chrono::steady_clock::now().time_since_epoch())
                            .count();
  std::printf("{\"mib\":%zu,\"us\":%lld}\n", mib, static_cast<long long>(end_us - begin_us.load()));
}

void send(const char* host, std::uint16_t port, std::size_t mib) {
  std::size_t each = mib * chunk_bytes / streams;
  unsigned char* memory = prefaulted(each * streams);
  std::vector<int> fds;
  for (int i = 0; i < streams; ++i) {
    int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    tune(fd);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    if (::inet_pton(AF_INET, host, &address.sin_addr) != 1) fail("address");
    if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fail("connect");
    fds.push_back(fd);
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < streams; ++i)
    threads.emplace_back([&, i] {
      unsigned char* at = memory + static_cast<std::size_t>(i) * each;
      for (std::size_t left = each; left > 0;) {
        ssize_t n = ::send(fds[static_cast<std::size_t>(i)], at, std::min(left, chunk_bytes),
                           MSG_NOSIGNAL);
        if (n <= 0) fail("send");
        at += n;
        left -= static_cast<std::size_t>(n);
      }
    });
  for (std::thread& t : threads) t.join();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "receive") {
    receive(static_cast<std::uint16_t>(std::atoi(argv[2])), std::strtoul(argv[3], nullptr, 10));
    return 0;
  }
  if (argc == 5 && std::string(argv[1]) == "send") {
    send(argv[2], static_cast<std::uint16_t>(std::atoi(argv[3])), std::strtoul(argv[4], nullptr, 10));
    return 0;
  }
  std::fprintf(stderr, "usage: raw_copy receive PORT MIB | raw_copy send ADDRESS PORT MIB\n");
  return 2;
}
