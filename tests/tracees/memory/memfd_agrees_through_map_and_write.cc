// A memfd that is written both with write(2) and through a mapping while it is moved. write(2)
// isn't seen by trackers of the mapping.
#include "tracee.h"
using namespace tracee;

int main() {
  int fd = memfd_create("agrees", MFD_CLOEXEC);
  need(fd >= 0, "memfd_create");
  constexpr size_t bytes = 8 * MiB;
  need(ftruncate(fd, bytes) == 0, "ftruncate");
  uint8_t* a = map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  uint8_t* b = map(bytes / 2, PROT_READ, MAP_SHARED, fd);
  uint8_t* own = map(bytes / 2, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  memset(own, 'p', page_size);
  constexpr size_t pages = bytes / page_size;
  std::vector<uint64_t> expected(pages);
  std::vector<uint64_t> page(page_size / 8);
  uint64_t step = 0;
  ready();
  for (; step % 16 != 0 || !moved(); ++step) {
    size_t at = mix(step) % (pages - 1) + 1;  // Page 0 stays as it is.
    expected[at] = step + 1;
    if (step % 2 == 0) {
      fill(page.data(), page_size, step);
      if (!check(
              pwrite(fd, page.data(), page_size, at * page_size) == static_cast<ssize_t>(page_size),
              "pwrite: errno %d", errno))
        break;
    } else {
      fill(a + at * page_size, page_size, step);
    }
  }
  wait_moved();
  for (size_t at = 1; at < pages; ++at) {
    if (expected[at] == 0) continue;
    if (!check_filled("page by the mapping", a + at * page_size, page_size, expected[at] - 1))
      break;
    check(pread(fd, page.data(), page_size, at * page_size) == static_cast<ssize_t>(page_size),
          "pread: errno %d", errno);
    if (!check_filled("page by read", page.data(), page_size, expected[at] - 1)) break;
  }
  check(memcmp(a, b, bytes / 2) == 0, "two shared views differ");
  check_all("own page of the private view", own, page_size, 'p');
  check_all("page 0", a, page_size, 0);
  char link[64] = {};
  check(readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), link, sizeof link - 1) > 0 &&
            strstr(link, "memfd:agrees") != nullptr,
        "the descriptor is %s", link);
  same("F_GETFD", FD_CLOEXEC, fcntl(fd, F_GETFD));
  return ok();
}
