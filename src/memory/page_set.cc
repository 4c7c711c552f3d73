#include "memory/page_set.h"

#include <algorithm>

namespace godwit::memory {
namespace {

// Bits [from, to] of a word, both inclusive.
std::uint64_t mask(std::uint64_t from, std::uint64_t to) {
  return (~0ull << from) & (~0ull >> (63 - to));
}

}  // namespace

PageSet::PageSet(const PageSet& other) { *this = other; }

PageSet& PageSet::operator=(const PageSet& other) {
  if (this == &other) return *this;
  chunks_.clear();
  for (const auto& [number, chunk] : other.chunks_)
    chunks_.emplace_hint(chunks_.end(), number, std::make_unique<Chunk>(*chunk));
  return *this;
}

// Visits the words that hold bits first..last (inclusive, within the chunk).
template <typename Change>
void PageSet::change_bits(Chunk& chunk, std::uint64_t first, std::uint64_t last, Change change) {
  for (std::uint64_t word = first / 64; word <= last / 64; ++word) {
    const std::uint64_t from = word == first / 64 ? first % 64 : 0;
    const std::uint64_t to = word == last / 64 ? last % 64 : 63;
    change(chunk[word], mask(from, to));
  }
}

void PageSet::add(std::uint64_t page, std::uint64_t pages) {
  const std::uint64_t end = page + pages;
  while (page < end) {
    const std::uint64_t number = page / chunk_pages;
    const std::uint64_t stop = std::min(end, (number + 1) * chunk_pages);
    auto& chunk = chunks_[number];
    if (!chunk) chunk = std::make_unique<Chunk>(Chunk{});
    change_bits(*chunk, page % chunk_pages, (stop - 1) % chunk_pages,
                [](std::uint64_t& word, std::uint64_t bits) { word |= bits; });
    page = stop;
  }
}

void PageSet::remove(std::uint64_t page, std::uint64_t pages) {
  const std::uint64_t end = page + pages;
  // By the chunks there are: the range may be terabytes.
  for (auto it = chunks_.lower_bound(page / chunk_pages);
       it != chunks_.end() && it->first * chunk_pages < end;) {
    const std::uint64_t first = std::max(page, it->first * chunk_pages);
    const std::uint64_t stop = std::min(end, (it->first + 1) * chunk_pages);
    if (stop - first == chunk_pages) {
      it = chunks_.erase(it);
      continue;
    }
    change_bits(*it->second, first % chunk_pages, (stop - 1) % chunk_pages,
                [](std::uint64_t& word, std::uint64_t bits) { word &= ~bits; });
    ++it;
  }
}

bool PageSet::contains(std::uint64_t page) const {
  auto it = chunks_.find(page / chunk_pages);
  if (it == chunks_.end()) return false;
  const std::uint64_t bit = page % chunk_pages;
  return ((*it->second)[bit / 64] >> (bit % 64) & 1) != 0;
}

bool PageSet::empty() const {
  for (const auto& [number, chunk] : chunks_)
    for (std::uint64_t word : *chunk)
      if (word != 0) return false;
  return true;
}

std::uint64_t PageSet::count() const {
  std::uint64_t sum = 0;
  for (const auto& [number, chunk] : chunks_)
    for (std::uint64_t word : *chunk) sum += static_cast<std::uint64_t>(std::popcount(word));
  return sum;
}

std::uint64_t PageSet::count(std::uint64_t page, std::uint64_t pages) const {
  std::uint64_t sum = 0;
  const std::uint64_t end = page + pages;
  for (auto it = chunks_.lower_bound(page / chunk_pages);
       it != chunks_.end() && it->first * chunk_pages < end; ++it) {
    const std::uint64_t first = std::max(page, it->first * chunk_pages);
    const std::uint64_t stop = std::min(end, (it->first + 1) * chunk_pages);
    change_bits(*it->second, first % chunk_pages, (stop - 1) % chunk_pages,
                [&sum](std::uint64_t& word, std::uint64_t bits) {
                  sum += static_cast<std::uint64_t>(std::popcount(word & bits));
                });
  }
  return sum;
}

void PageSet::add(const PageSet& other) {
  for (const auto& [number, theirs] : other.chunks_) {
    auto& ours = chunks_[number];
    if (!ours) {
      ours = std::make_unique<Chunk>(*theirs);
    } else {
      for (std::uint64_t i = 0; i < words; ++i) (*ours)[i] |= (*theirs)[i];
    }
  }
}

void PageSet::remove(const PageSet& other) {
  for (auto& [number, ours] : chunks_) {
    auto theirs = other.chunks_.find(number);
    if (theirs == other.chunks_.end()) continue;
    for (std::uint64_t i = 0; i < words; ++i) (*ours)[i] &= ~(*theirs->second)[i];
  }
}

void PageSet::keep_only(const PageSet& other) {
  for (auto it = chunks_.begin(); it != chunks_.end();) {
    auto theirs = other.chunks_.find(it->first);
    if (theirs == other.chunks_.end()) {
      it = chunks_.erase(it);
      continue;
    }
    for (std::uint64_t i = 0; i < words; ++i) (*it->second)[i] &= (*theirs->second)[i];
    ++it;
  }
}

PageSet PageSet::within(std::uint64_t page, std::uint64_t pages) const {
  PageSet out;
  const std::uint64_t end = page + pages;
  for (auto it = chunks_.lower_bound(page / chunk_pages);
       it != chunks_.end() && it->first * chunk_pages < end; ++it) {
    const std::uint64_t first = std::max(page, it->first * chunk_pages);
    const std::uint64_t stop = std::min(end, (it->first + 1) * chunk_pages);
    auto copy = std::make_unique<Chunk>(Chunk{});
    const Chunk& from = *it->second;
    Chunk& to = *copy;
    change_bits(to, first % chunk_pages, (stop - 1) % chunk_pages,
                [&](std::uint64_t& word, std::uint64_t bits) {
                  word = from[static_cast<std::size_t>(&word - to.data())] & bits;
                });
    out.chunks_.emplace(it->first, std::move(copy));
  }
  return out;
}

PageRun PageSet::next_run(std::uint64_t from, std::uint64_t pages_max) const {
  PageRun run;
  for (auto it = chunks_.lower_bound(from / chunk_pages); it != chunks_.end(); ++it) {
    const Chunk& chunk = *it->second;
    const std::uint64_t base = it->first * chunk_pages;
    if (run.pages != 0 && run.end() != base) return run;
    std::uint64_t bit = from > base ? from - base : 0;
    while (bit < chunk_pages) {
      const std::uint64_t rest = chunk[bit / 64] >> (bit % 64);
      if (run.pages == 0) {
        if (rest == 0) {
          bit = (bit / 64 + 1) * 64;
          continue;
        }
        bit += static_cast<std::uint64_t>(std::countr_zero(rest));
        run.page = base + bit;
      }
      const std::uint64_t ones = std::min<std::uint64_t>(
          static_cast<std::uint64_t>(std::countr_one(chunk[bit / 64] >> (bit % 64))),
          64 - bit % 64);
      run.pages += ones;
      bit += ones;
      if (run.pages >= pages_max) {
        run.pages = pages_max;
        return run;
      }
      if (bit % 64 != 0 || ones == 0) return run;
    }
  }
  return run;
}

std::vector<PageRun> PageSet::runs() const {
  std::vector<PageRun> out;
  for_each_run([&out](const PageRun& run) { out.push_back(run); });
  return out;
}

}  // namespace godwit::memory
