#include "memory/page_source.h"

#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "base/ids.h"
#include "memory/zero_page.h"
#include "sys/memory_io.h"

namespace godwit::memory {

Result<std::unique_ptr<ProcessSource>> ProcessSource::open(pid_t pid, const PageSet* at_target) {
  Result<UniqueFd> mem = sys::open_mem(pid, false);
  if (!mem.ok() && mem.error().sys_errno() == ENOENT)
    return make_error(Errc::tracee_gone, "process {} is gone", pid);
  return std::unique_ptr<ProcessSource>(new ProcessSource(pid, TRY(std::move(mem)), at_target));
}

// What process_vm_readv refuses (PROT_NONE with data, write-only, execute-only) /proc/PID/mem
// gives; what that refuses too, page by page, is gone or was never memory.
void ProcessSource::fetch_hard(const PageRun& run, std::byte* into, std::span<Verdict> verdicts) {
  const std::uint64_t bytes = run.pages * page_bytes;
  Result<void> whole = sys::mem_read(mem_fd_.get(), run.page * page_bytes, {into, bytes});
  if (whole.ok()) return;
  for (std::uint64_t i = 0; i < run.pages; ++i) {
    Result<void> one = sys::mem_read(mem_fd_.get(), (run.page + i) * page_bytes,
                                     {into + i * page_bytes, page_bytes});
    if (!one.ok()) verdicts[i] = Verdict::unreadable;
  }
}

Result<void> ProcessSource::fetch(std::span<const PageRun> runs, std::byte* into,
                                  std::span<Verdict> verdicts) {
  std::fill(verdicts.begin(), verdicts.end(), Verdict::send);
  std::vector<sys::RemoteRange> ranges;
  ranges.reserve(runs.size());
  for (const PageRun& run : runs)
    ranges.push_back({.address = run.page * page_bytes, .bytes = run.pages * page_bytes});

  std::size_t first = 0;   // Run to read next.
  std::uint64_t done = 0;  // Pages of the runs before it.
  while (first < runs.size()) {
    const std::size_t count = std::min(runs.size() - first, sys::iovecs_max);
    std::uint64_t asked = 0;
    for (std::size_t i = first; i < first + count; ++i) asked += runs[i].pages;
    Result<std::uint64_t> got = sys::vm_read(pid_, {into + done * page_bytes, asked * page_bytes},
                                             std::span(ranges).subspan(first, count));
    if (!got.ok() && got.error().code() == Errc::tracee_gone) {
      // Ended in the middle of a round; the caller knows whether that matters.
      std::fill(verdicts.begin() + static_cast<std::ptrdiff_t>(done), verdicts.end(),
                Verdict::unreadable);
      break;
    }
    std::uint64_t pages = got.ok() ? *got / page_bytes : 0;
    while (first < runs.size() && pages >= runs[first].pages && pages > 0) {
      pages -= runs[first].pages;
      done += runs[first].pages;
      ++first;
      if (pages == 0) break;
    }
    if (got.ok() && *got == asked * page_bytes) continue;
    // The page after the last one read stands in the way.
    const PageRun rest{
        .page = runs[first].page + pages, .pages = runs[first].pages - pages, .huge = false};
    const std::uint64_t at = done + pages;
    fetch_hard(rest, into + at * page_bytes, verdicts.subspan(at, rest.pages));
    done += runs[first].pages;
    ++first;
  }
  for (std::size_t i = 0; i < verdicts.size(); ++i)
    if (verdicts[i] == Verdict::send && is_zero_page(into + i * page_bytes))
      verdicts[i] = Verdict::zero;
  return {};
}

std::uint64_t& FileSource::hash_at(std::uint64_t page) {
  auto it = hashes_.find(page / chunk_pages);
  INVARIANT(it != hashes_.end(), "page {} wasn't surveyed", page);
  return (*it->second)[page % chunk_pages];
}

Result<std::vector<PageRun>> FileSource::survey(std::vector<PageRun>& dropped) {
  struct stat st;
  if (::fstat(fd_.get(), &st) != 0) return os_error("fstat of a private file");
  PageSet data;
  off_t at = 0;
  while (at < st.st_size) {
    const off_t start = ::lseek(fd_.get(), at, SEEK_DATA);
    if (start < 0 && errno == ENXIO) break;  // Holes to the end.
    if (start < 0) return os_error(fmt::format("lseek(SEEK_DATA, {})", at));
    const off_t end = ::lseek(fd_.get(), start, SEEK_HOLE);
    if (end < 0) return os_error(fmt::format("lseek(SEEK_HOLE, {})", start));
    const std::uint64_t first = static_cast<std::uint64_t>(start) / page_bytes;
    const std::uint64_t last = (static_cast<std::uint64_t>(end) + page_bytes - 1) / page_bytes;
    data.add(first, last - first);
    at = end;
  }
  PageSet gone = had_;
  gone.remove(data);
  gone.for_each_run([&](const PageRun& run) {
    dropped.push_back(run);
    for (std::uint64_t page = run.page; page < run.end(); ++page) hash_at(page) = 0;
  });
  had_.remove(gone);
  std::vector<PageRun> runs = data.runs();
  for (const PageRun& run : runs) {
    for (std::uint64_t chunk = run.page / chunk_pages; chunk <= (run.end() - 1) / chunk_pages;
         ++chunk) {
      auto& slot = hashes_[chunk];
      if (!slot) slot = std::make_unique<Chunk>(Chunk{});
    }
  }
  return runs;
}

Result<void> FileSource::fetch(std::span<const PageRun> runs, std::byte* into,
                               std::span<Verdict> verdicts) {
  std::size_t index = 0;
  for (const PageRun& run : runs) {
    std::byte* const base = into + index * page_bytes;
    std::uint64_t have = 0;
    const std::uint64_t bytes = run.pages * page_bytes;
    while (have < bytes) {
      const ssize_t n = ::pread(fd_.get(), base + have, bytes - have,
                                static_cast<off_t>(run.page * page_bytes + have));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return os_error(fmt::format("pread(private file, page={})", run.page));
      if (n == 0) break;  // Ends within its last page, or was cut meanwhile.
      have += static_cast<std::uint64_t>(n);
    }
    std::memset(base + have, 0, bytes - have);
    for (std::uint64_t i = 0; i < run.pages; ++i, ++index) {
      const std::byte* page = base + i * page_bytes;
      std::uint64_t& known = hash_at(run.page + i);
      if (is_zero_page(page)) {
        verdicts[index] = Verdict::zero;
        known = 0;
        continue;
      }
      std::uint64_t hash = XXH3_64bits(page, page_bytes);
      if (hash == 0) hash = 1;
      verdicts[index] = hash == known ? Verdict::unchanged : Verdict::send;
      known = hash;
    }
  }
  return {};
}

void FileSource::sent(const PageSet& sent, const PageSet& zero) {
  had_.add(sent);
  had_.remove(zero);
}

}  // namespace godwit::memory
