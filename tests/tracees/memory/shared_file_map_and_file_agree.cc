// Stores through MAP_SHARED are in the file, write(2) shows in the mapping, before and after.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  std::string path = scratch.path("data");
  constexpr size_t bytes = 1 * MiB;
  write_file(path, std::string(bytes, 0));
  int fd = open(path.c_str(), O_RDWR);
  need(fd >= 0, "open");
  uint8_t* p = map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  fill(p, bytes / 2, 9);
  uint64_t count = 0;
  auto* counter = reinterpret_cast<volatile uint64_t*>(p + bytes / 2);
  ready();
  while (count % 256 != 0 || !moved()) {
    *counter = ++count;
    uint64_t seen = 0;
    if (!check(pread(fd, &seen, 8, bytes / 2) == 8 && seen == count, "read gives %llu for %llu",
               static_cast<unsigned long long>(seen), static_cast<unsigned long long>(count)))
      break;
  }
  wait_moved();
  check_filled("mapping", p, bytes / 2, 9);
  uint64_t value = 0x1122334455667788;
  check(pwrite(fd, &value, 8, bytes - 8) == 8, "pwrite: errno %d", errno);
  same("word written to the file", value, *reinterpret_cast<uint64_t*>(p + bytes - 8));
  check(msync(p, bytes, MS_SYNC) == 0, "msync: errno %d", errno);
  std::string file = read_file(path);
  if (same("size of the file", bytes, file.size()))
    check(memcmp(file.data(), p, bytes) == 0, "file and mapping differ");
  return ok();
}
