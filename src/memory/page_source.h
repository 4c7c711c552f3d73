// Where the pages of a space come from on the source: a process, or a private file. One interface
// for the sender and the page server.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/unique_fd.h"
#include "memory/page_set.h"
#include "memory/types.h"

namespace godwit::memory {

enum class Verdict : std::uint8_t {
  send,        // Content.
  zero,        // All zeros: not sent; told as dropped if the target has something else there.
  unchanged,   // The target has exactly this.
  unreadable,  // Gone meanwhile, or never readable.
};

class PageSource {
 public:
  virtual ~PageSource() = default;
  // Fills `into` (64-byte aligned; the sum of the runs) and a verdict for each page. Called by
  // several threads, for disjoint pages. Pages of a process that has ended are unreadable.
  virtual Result<void> fetch(std::span<const PageRun> runs, std::byte* into,
                             std::span<Verdict> verdicts) = 0;
  // Does the target have content of this page? (Then a zero page must be told.)
  virtual bool target_has(std::uint64_t page) const = 0;
};

class ProcessSource final : public PageSource {
 public:
  static Result<std::unique_ptr<ProcessSource>> open(pid_t pid, const PageSet* at_target);
  Result<void> fetch(std::span<const PageRun> runs, std::byte* into,
                     std::span<Verdict> verdicts) override;
  bool target_has(std::uint64_t page) const override { return at_target_->contains(page); }

 private:
  ProcessSource(pid_t pid, UniqueFd mem_fd, const PageSet* at_target)
      : pid_(pid), mem_fd_(std::move(mem_fd)), at_target_(at_target) {}
  void fetch_hard(const PageRun& run, std::byte* into, std::span<Verdict> verdicts);

  pid_t pid_;
  UniqueFd mem_fd_;
  const PageSet* at_target_;
};

// A file's pages are compared by hash with what was sent before: it may be written through any
// mapping of any process and by write(2), which no tracker sees all of.
class FileSource final : public PageSource {
 public:
  explicit FileSource(UniqueFd fd) : fd_(std::move(fd)) {}

  // Pages to look at in this round: the data extents. Those that had content before and lie in
  // holes or behind the end now go to `dropped`. Called by one thread, between rounds.
  Result<std::vector<PageRun>> survey(std::vector<PageRun>& dropped);
  Result<void> fetch(std::span<const PageRun> runs, std::byte* into,
                     std::span<Verdict> verdicts) override;
  bool target_has(std::uint64_t page) const override { return had_.contains(page); }
  // After a round: which pages the target has now.
  void sent(const PageSet& sent, const PageSet& zero);

 private:
  static constexpr std::uint64_t chunk_pages = 512;
  using Chunk = std::array<std::uint64_t, chunk_pages>;  // Hash per page; 0: not at the target.

  std::uint64_t& hash_at(std::uint64_t page);

  UniqueFd fd_;
  std::map<std::uint64_t, std::unique_ptr<Chunk>>
      hashes_;  // Made by survey(), by page / chunk_pages.
  PageSet had_;
};

}  // namespace godwit::memory
