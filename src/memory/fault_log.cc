#include "memory/fault_log.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "base/io.h"

namespace godwit::memory {
namespace {

struct Run {
  std::uint64_t space, page, pages;
};
static_assert(sizeof(Run) == 24);
static_assert(sizeof(FaultLog::Entry) == 40);

constexpr std::uint64_t log_magic = 0x31474c4657444f47;  // "GODWFLG1"

}  // namespace

struct FaultLog::Header {
  std::uint64_t magic;
  std::uint64_t runs;
  std::atomic<std::uint64_t> entries;
  std::atomic<std::uint32_t> full;  // An event was read that isn't here.
  std::atomic<std::uint32_t> complete;
};

FaultLog::FaultLog(UniqueFd fd, void* memory, std::size_t bytes)
    : fd_(std::move(fd)), memory_(memory), bytes_(bytes) {}

FaultLog::FaultLog(FaultLog&& other) noexcept
    : fd_(std::move(other.fd_)),
      memory_(std::exchange(other.memory_, nullptr)),
      bytes_(other.bytes_),
      missing_(std::move(other.missing_)) {}

FaultLog::~FaultLog() {
  if (memory_ != nullptr) ::munmap(memory_, bytes_);
}

FaultLog::Header& FaultLog::header() const { return *static_cast<Header*>(memory_); }

FaultLog::Entry* FaultLog::entry(std::uint64_t index) const {
  std::byte* at = static_cast<std::byte*>(memory_) + sizeof(Header) + header().runs * sizeof(Run);
  return reinterpret_cast<Entry*>(at) + index;
}

Result<FaultLog> FaultLog::create(const Missing& missing) {
  UniqueFd fd(static_cast<int>(::memfd_create("godwit-faults", MFD_CLOEXEC)));
  if (!fd.valid()) return os_error("memfd_create(godwit-faults)");
  std::vector<std::byte> start(sizeof(Header));
  std::vector<Run> runs;
  for (const auto& [of, pages] : missing) {
    const SpaceId space = of;  // clang 14 captures no structured bindings.
    pages.for_each_run([&](const PageRun& run) {
      runs.push_back({.space = space, .page = run.page, .pages = run.pages});
    });
  }
  Header head{.magic = log_magic, .runs = runs.size(), .entries = 0, .full = 0, .complete = 0};
  std::memcpy(start.data(), static_cast<const void*>(&head), sizeof head);
  // By write(2): half the price of faulting the pages in one by one.
  TRY(write_full(fd.get(), start));
  TRY(write_full(fd.get(), std::as_bytes(std::span(runs))));
  const std::size_t bytes = sizeof(Header) + runs.size() * sizeof(Run) + slots_max * sizeof(Entry);
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    return os_error(fmt::format("ftruncate(godwit-faults, {})", bytes));
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) return os_error(fmt::format("mmap(godwit-faults, {})", bytes));
  return FaultLog(std::move(fd), memory, bytes);
}

Result<FaultLog> FaultLog::open(UniqueFd fd) {
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return os_error("fstat(godwit-faults)");
  const auto bytes = static_cast<std::size_t>(info.st_size);
  if (bytes < sizeof(Header)) return make_error(Errc::invalid, "the log of faults has no header");
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) return os_error(fmt::format("mmap(godwit-faults, {})", bytes));
  FaultLog log(std::move(fd), memory, bytes);
  const Header& head = log.header();
  if (head.magic != log_magic || head.runs > bytes / sizeof(Run) || head.entries > slots_max ||
      sizeof(Header) + head.runs * sizeof(Run) + slots_max * sizeof(Entry) != bytes)
    return make_error(Errc::invalid, "the log of faults is damaged");
  if (head.full != 0)
    return make_error(Errc::unsupported, "more than {} changes of mappings since the start",
                      slots_max);
  const std::byte* at = static_cast<std::byte*>(memory) + sizeof(Header);
  for (std::uint64_t i = 0; i < head.runs; ++i) {
    Run run;
    std::memcpy(&run, at + i * sizeof run, sizeof run);
    PageSet& missing = log.missing_[static_cast<SpaceId>(run.space)];
    if (head.complete == 0) missing.add(run.page, run.pages);
  }
  // An event that its reader took but had no time to count.
  const Entry* last = head.entries < slots_max ? log.entry(head.entries) : nullptr;
  if (last != nullptr && last->message.event != 0 && last->message.event != UFFD_EVENT_PAGEFAULT)
    log.keep();
  return log;
}

std::vector<FaultLog::Entry> FaultLog::entries() const {
  return {entry(0), entry(header().entries)};
}

uffd_msg* FaultLog::slot(std::uint64_t view) {
  const std::uint64_t index = header().entries;
  if (index == slots_max) {
    header().full = 1;
    return nullptr;
  }
  Entry* next = entry(index);
  next->view = view;
  std::memset(&next->message, 0, sizeof next->message);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return &next->message;
}

void FaultLog::mark_complete() { header().complete = 1; }

void FaultLog::keep() { header().entries.fetch_add(1); }

}  // namespace godwit::memory
