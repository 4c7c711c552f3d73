#include "memory/moved_pages.h"

#include <algorithm>

namespace godwit::memory {

const MovedPages::Runs::value_type* MovedPages::covering(const Runs& runs, std::uint64_t page) {
  auto after = runs.upper_bound(page);
  if (after == runs.begin()) return nullptr;
  const auto& run = *std::prev(after);
  return page < run.first + run.second.pages ? &run : nullptr;
}

std::uint64_t MovedPages::source_of(std::uint64_t place) const {
  const auto* run = covering(by_place_, place);
  return run == nullptr ? place : run->second.other + (place - run->first);
}

std::uint64_t MovedPages::place_of(std::uint64_t source) const {
  const auto* run = covering(by_source_, source);
  return run == nullptr ? source : run->second.other + (source - run->first);
}

void MovedPages::add(std::uint64_t place, std::uint64_t source, std::uint64_t pages) {
  by_place_[place] = {.pages = pages, .other = source};
  by_source_[source] = {.pages = pages, .other = place};
}

void MovedPages::forget(std::uint64_t place, std::uint64_t pages) {
  const std::uint64_t end = place + pages;
  auto run = by_place_.lower_bound(place);
  if (run != by_place_.begin() && std::prev(run)->first + std::prev(run)->second.pages > place)
    --run;
  while (run != by_place_.end() && run->first < end) {
    const auto [first, cut] = *run;
    run = by_place_.erase(run);
    by_source_.erase(cut.other);
    // What sticks out on either side stays.
    if (first < place) add(first, cut.other, place - first);
    if (first + cut.pages > end) add(end, cut.other + (end - first), first + cut.pages - end);
  }
}

void MovedPages::move(const PageSet& missing, std::uint64_t from, std::uint64_t to,
                      std::uint64_t pages) {
  struct Move {
    std::uint64_t to, source, pages;
  };
  std::vector<Move> moves;
  missing.within(from, pages).for_each_run([&](const PageRun& run) {
    for (std::uint64_t page = run.page; page < run.end();) {
      // As far as its source goes on without a break.
      const auto* known = covering(by_place_, page);
      auto next = by_place_.upper_bound(page);
      std::uint64_t end = run.end();
      if (known != nullptr)
        end = std::min(end, known->first + known->second.pages);
      else if (next != by_place_.end())
        end = std::min(end, next->first);
      moves.push_back({.to = page - from + to, .source = source_of(page), .pages = end - page});
      page = end;
    }
  });
  forget(from, pages);
  forget(to, pages);
  for (const Move& move : moves)
    if (move.to != move.source) add(move.to, move.source, move.pages);
}

}  // namespace godwit::memory
