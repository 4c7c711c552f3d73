#include "sys/own_memory.h"

#include <malloc.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/io.h"

namespace godwit::sys {
namespace {

// Newer than some headers.
constexpr int populate_read = 22, populate_write = 23;
// The most that malloc accepts; from there on it asks the kernel for each block by itself.
constexpr int block_bytes_max = 32 << 20;

void prefault_image() {
  Result<std::string> maps = read_file("/proc/self/maps");
  if (!maps.ok()) return;
  for (char* line = std::strtok(maps->data(), "\n"); line != nullptr;
       line = std::strtok(nullptr, "\n")) {
    unsigned long start = 0, end = 0;
    char rights[5] = {};
    if (std::sscanf(line, "%lx-%lx %4s", &start, &end, rights) != 3 || rights[0] != 'r') continue;
    if (std::strchr(line, '/') == nullptr) continue;
    (void)::madvise(reinterpret_cast<void*>(start), end - start,
                    rights[1] == 'w' ? populate_write : populate_read);
  }
}

}  // namespace

void prefault_own_memory(std::size_t heap_bytes) {
  ::mallopt(M_MMAP_THRESHOLD, block_bytes_max);
  ::mallopt(M_TRIM_THRESHOLD, 2 * block_bytes_max);
  ::mallopt(M_ARENA_MAX, 1);  // Another thread's arena would begin with faults of its own.
  prefault_image();
  constexpr std::size_t page = 4096;
  const std::size_t bytes = heap_bytes / page * page;
  void* block = std::aligned_alloc(page, bytes);
  if (block == nullptr) return;
  (void)::madvise(block, bytes, populate_write);
  std::free(block);
}

}  // namespace godwit::sys
