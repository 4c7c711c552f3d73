#include "sys/pagemap.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "base/ids.h"
#include "base/io.h"

namespace godwit::sys {
namespace {

struct PmScanArg {  // struct pm_scan_arg of the kernel
  std::uint64_t size;
  std::uint64_t flags;
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t walk_end;
  std::uint64_t vec;
  std::uint64_t vec_len;
  std::uint64_t max_pages;
  std::uint64_t category_inverted;
  std::uint64_t category_mask;
  std::uint64_t category_anyof_mask;
  std::uint64_t return_mask;
};
static_assert(sizeof(PmScanArg) == 96);
static_assert(sizeof(PageRegion) == 24);

constexpr unsigned long pagemap_scan_request = _IOWR('f', 16, PmScanArg);
constexpr std::uint64_t flag_wp_matching = 1;
constexpr std::uint64_t flag_check_wpasync = 2;
// Few answers are the rule; the vector's growth is what many cost.
constexpr std::size_t regions_first_call = 256;
constexpr std::size_t regions_per_call = 16 * 1024;

}  // namespace

Result<UniqueFd> open_pagemap(pid_t pid) {
  return open_fd(fmt::format("/proc/{}/pagemap", pid), O_RDONLY);
}

Result<void> pagemap_scan(int pagemap_fd, const ScanQuery& query, std::vector<PageRegion>& out) {
  std::uint64_t at = query.start;
  std::size_t room = regions_first_call;
  while (at < query.end) {
    const std::size_t had = out.size();
    out.resize(had + room);
    PmScanArg arg{.size = sizeof(PmScanArg),
                  .flags = (query.write_protect ? flag_wp_matching : 0) |
                           (query.check_registered ? flag_check_wpasync : 0),
                  .start = at,
                  .end = query.end,
                  .walk_end = 0,
                  .vec = reinterpret_cast<std::uint64_t>(out.data() + had),
                  .vec_len = room,
                  .max_pages = 0,
                  .category_inverted = query.inverted,
                  .category_mask = query.required | (query.inverted & ~query.any_of),
                  .category_anyof_mask = query.any_of,
                  .return_mask = query.returned};
    const int n = ::ioctl(pagemap_fd, pagemap_scan_request, &arg);
    if (n < 0) {
      const int error = errno;
      out.resize(had);
      if (error == EINTR) continue;
      return os_error(fmt::format("PAGEMAP_SCAN({:#x}-{:#x})", at, query.end), error);
    }
    out.resize(had + static_cast<std::size_t>(n));
    // walk_end tells the truth only where the room was too small: a walk that came to its end after
    // the kernel's own buffer (512 regions) had been full says where that was.
    if (static_cast<std::size_t>(n) < room) break;
    INVARIANT(arg.walk_end > at, "PAGEMAP_SCAN stands still at {:#x}", at);
    at = std::max<std::uint64_t>(arg.walk_end, out.back().end);
    room = std::min(room * 8, regions_per_call);
  }
  return {};
}

namespace {

// A kernel refuses categories that it doesn't know.
bool knows_category(std::uint64_t category) {
  Result<UniqueFd> fd = open_fd("/proc/self/pagemap", O_RDONLY);
  if (!fd.ok()) return false;
  alignas(page_bytes) static char probe[page_bytes];
  std::vector<PageRegion> out;
  const auto at = reinterpret_cast<std::uint64_t>(probe);
  return pagemap_scan(fd->get(), {.start = at, .end = at + page_bytes, .returned = category}, out)
      .ok();
}

}  // namespace

bool pagemap_scan_supported() { return knows_category(page_present); }

bool pagemap_guard_supported() {
  static const bool supported = knows_category(page_guard);
  return supported;
}

Result<void> pagemap_read(int pagemap_fd, std::uint64_t first_page, std::span<std::uint64_t> out) {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(pagemap_fd, out.data() + done, (out.size() - done) * 8,
                              static_cast<off_t>((first_page + done) * 8));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return os_error(fmt::format("pread(pagemap, page={:#x})", first_page + done));
    if (n == 0) return make_error(Errc::tracee_gone, "pagemap ended: the address space is gone");
    done += static_cast<std::size_t>(n) / 8;
  }
  return {};
}

Result<void> clear_soft_dirty(pid_t pid) {
  return write_file(fmt::format("/proc/{}/clear_refs", pid), "4");
}

bool soft_dirty_supported() {
  void* memory =
      ::mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return false;
  auto* byte = static_cast<volatile char*>(memory);
  byte[0] = 1;
  auto dirty = [&]() -> Result<bool> {
    UniqueFd fd = TRY(open_pagemap(::getpid()));
    std::array<std::uint64_t, 1> word{};
    TRY(pagemap_read(fd.get(), reinterpret_cast<std::uint64_t>(memory) / page_bytes, word));
    return (word[0] & pagemap_soft_dirty) != 0;
  };
  auto probe = [&]() -> Result<bool> {
    TRY(clear_soft_dirty(::getpid()));
    if (TRY(dirty())) return false;
    byte[0] = 2;
    return TRY(dirty());
  };
  Result<bool> works = probe();
  ::munmap(memory, page_bytes);
  return works.ok() && *works;
}

}  // namespace godwit::sys
