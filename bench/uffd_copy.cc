// uffd_copy: the other yardstick of bench/migrate. How long UFFDIO_COPY alone takes to fill N MiB
// of fresh 4K pages, from a buffer that stays in the cache: no link, no source, no program. What a
// post-copy of as many bytes costs the target at least.
//
//   uffd_copy MIB [PIECE_KIB]      prints {"mib":..,"us":..}
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: uffd_copy MIB [PIECE_KIB]\n");
    return 2;
  }
  const std::size_t bytes = std::strtoul(argv[1], nullptr, 10) << 20;
  const std::size_t piece = (argc == 3 ? std::strtoul(argv[2], nullptr, 10) : 128) << 10;
  if (bytes == 0 || piece == 0 || bytes % piece != 0) {
    std::fprintf(stderr, "uffd_copy: sizes\n");
    return 2;
  }
  void* to = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (to == MAP_FAILED) fail("mmap");
  if (::madvise(to, bytes, MADV_NOHUGEPAGE) != 0) fail("madvise");
  std::vector<unsigned char> from(piece, 0x5a);
  const int uffd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (uffd < 0) fail("userfaultfd");
  uffdio_api api{};
  api.api = UFFD_API;
  if (::ioctl(uffd, UFFDIO_API, &api) != 0) fail("UFFDIO_API");
  uffdio_register area{};
  area.range.start = reinterpret_cast<std::uint64_t>(to);
  area.range.len = bytes;
  area.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (::ioctl(uffd, UFFDIO_REGISTER, &area) != 0) fail("UFFDIO_REGISTER");
  const auto begin = std::chrono::steady_clock::now();
  for (std::size_t at = 0; at < bytes; at += piece) {
    uffdio_copy copy{};
    copy.dst = area.range.start + at;
    copy.src = reinterpret_cast<std::uint64_t>(from.data());
    copy.len = piece;
    if (::ioctl(uffd, UFFDIO_COPY, &copy) != 0) fail("UFFDIO_COPY");
  }
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(
                      std::chrono::steady_clock::now() - begin)
                      .count();
  std::printf("{\"mib\":%zu,\"us\":%lld}\n", bytes >> 20, static_cast<long long>(us));
  return 0;
}
