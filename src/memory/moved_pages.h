// Where missing pages are that mremap(2) has moved: from their place at the source to the one that
// the program gives them now. Both directions, in runs, for any number of moves: a program that
// moves an area to and fro leaves one run, not one for each time.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "memory/page_set.h"

namespace godwit::memory {

class MovedPages {
 public:
  bool empty() const { return by_place_.empty(); }
  std::size_t runs() const { return by_place_.size(); }

  // What the page at `place` is at the source: itself, if nothing was moved there.
  std::uint64_t source_of(std::uint64_t place) const;
  // Where the source's page is now. Nothing was moved: itself.
  std::uint64_t place_of(std::uint64_t source) const;

  // The pages of `missing` within [from, from + pages) go to `to`; what was noted of either place
  // is forgotten.
  void move(const PageSet& missing, std::uint64_t from, std::uint64_t to, std::uint64_t pages);

 private:
  struct Run {
    std::uint64_t pages = 0, other = 0;
  };
  using Runs = std::map<std::uint64_t, Run>;  // By first page; no two overlap.

  static const Runs::value_type* covering(const Runs& runs, std::uint64_t page);
  void forget(std::uint64_t place, std::uint64_t pages);
  void add(std::uint64_t place, std::uint64_t source, std::uint64_t pages);

  Runs by_place_, by_source_;  // The same runs.
};

}  // namespace godwit::memory
