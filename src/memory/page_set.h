// A set of page numbers of one space: bitmaps of 128 MiB each, made where needed. A sparse 100 GB
// reservation costs nothing, a dense gigabyte 32 KiB, and the set operations of a round go by
// words of 64 pages.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "memory/types.h"

namespace godwit::memory {

class PageSet {
 public:
  PageSet() = default;
  PageSet(const PageSet& other);
  PageSet& operator=(const PageSet& other);
  PageSet(PageSet&&) = default;
  PageSet& operator=(PageSet&&) = default;

  void add(std::uint64_t page, std::uint64_t pages = 1);
  void remove(std::uint64_t page, std::uint64_t pages = 1);
  bool contains(std::uint64_t page) const;
  bool empty() const;
  std::uint64_t count() const;
  std::uint64_t count(std::uint64_t page, std::uint64_t pages) const;
  void clear() { chunks_.clear(); }

  void add(const PageSet& other);
  void remove(const PageSet& other);
  void keep_only(const PageSet& other);

  // The part within [page, page + pages).
  PageSet within(std::uint64_t page, std::uint64_t pages) const;

  // The first run at or after `from`, at most `pages_max` long; pages == 0 if there is none.
  PageRun next_run(std::uint64_t from, std::uint64_t pages_max = ~0ull) const;
  std::vector<PageRun> runs() const;

  template <typename Visit>
  void for_each_run(Visit visit) const {
    for (PageRun run = next_run(0); run.pages != 0; run = next_run(run.end())) visit(run);
  }

 private:
  static constexpr std::uint64_t chunk_pages = 32'768;
  static constexpr std::uint64_t words = chunk_pages / 64;
  using Chunk = std::array<std::uint64_t, words>;

  template <typename Change>
  static void change_bits(Chunk& chunk, std::uint64_t first, std::uint64_t last, Change change);

  std::map<std::uint64_t, std::unique_ptr<Chunk>> chunks_;  // By page / chunk_pages.
};

}  // namespace godwit::memory
