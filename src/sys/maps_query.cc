#include "sys/maps_query.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include "base/ids.h"
#include "base/io.h"
#include "sys/proc.h"

namespace godwit::sys {
namespace {

struct ProcmapQuery {  // struct procmap_query of the kernel
  std::uint64_t size;
  std::uint64_t query_flags;
  std::uint64_t query_addr;
  std::uint64_t vma_start;
  std::uint64_t vma_end;
  std::uint64_t vma_flags;
  std::uint64_t vma_page_size;
  std::uint64_t vma_offset;
  std::uint64_t inode;
  std::uint32_t dev_major;
  std::uint32_t dev_minor;
  std::uint32_t vma_name_size;
  std::uint32_t build_id_size;
  std::uint64_t vma_name_addr;
  std::uint64_t build_id_addr;
};
static_assert(sizeof(ProcmapQuery) == 104);
constexpr unsigned long procmap_query_request = _IOWR('f', 17, ProcmapQuery);
constexpr std::uint64_t covering_or_next = 0x10;

// Between the heap, which grows up, and the mappings, which grow down, nearly everything is free.
constexpr std::uint64_t likely_free[] = {0x600000000000, 0x400000000000, 0x200000000000,
                                         0x100000000000, 0x080000000000};
constexpr std::uint64_t ample = 64ull << 30;

// 0: the kernel can't tell, or all of those are taken.
std::uint64_t probe_likely(pid_t pid) {
  Result<UniqueFd> maps = open_fd(proc_path(pid, "maps"), O_RDONLY);
  if (!maps.ok()) return 0;
  for (std::uint64_t at : likely_free) {
    ProcmapQuery query{};
    query.size = sizeof query;
    query.query_flags = covering_or_next;
    query.query_addr = at;
    if (::ioctl(maps->get(), procmap_query_request, &query) != 0) return 0;
    if (query.vma_start > at && query.vma_start - at >= ample)
      return at + (query.vma_start - at) / 2;
  }
  return 0;
}

}  // namespace

Result<std::uint64_t> roomy_address(pid_t pid, std::uint64_t bytes) {
  if (std::uint64_t at = probe_likely(pid); at != 0 && bytes < ample / 4)
    return at & ~(page_bytes - 1);
  // In the middle of the largest gap.
  std::uint64_t previous_end = 1 << 20, gap = 0, middle = 0;
  for (const MapEntry& map : TRY(read_maps(pid))) {
    if (map.start > previous_end && map.start - previous_end > gap && map.start < (1ULL << 47)) {
      gap = map.start - previous_end;
      middle = previous_end + gap / 2;
    }
    previous_end = map.end;
  }
  if (gap < 2 * (bytes + 2 * page_bytes))
    return make_error(Errc::unsupported, "process {} has no room for {} bytes", pid, bytes);
  return middle & ~(page_bytes - 1);
}

}  // namespace godwit::sys
