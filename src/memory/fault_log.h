// What a pager leaves to its successor, in memory that outlives it: which pages were missing when
// it started, and every event since that moved pages or took some away.
//
// The kernel tells an event once. A pager that was killed after read(2) and before it had noted the
// event would leave a successor that fills pages which the program has given back. So events are
// read straight into the log: read(2) either hasn't taken the event or has left it here (the page
// of the slot is written to before each call, so the copy can't fault half-way).
//
// Pages that have arrived are not noted: copying one again fails with EEXIST and harms nothing.
// That holds while their areas are registered: before the first is unregistered, it is noted that
// nothing is missing any more.
//
// Layout of the memfd: Header, runs (Run), then room for `slots_max` entries; sparse behind what is
// used.
#pragma once

#include <linux/userfaultfd.h>

#include <atomic>
#include <cstddef>
#include <map>
#include <optional>
#include <vector>

#include "base/unique_fd.h"
#include "memory/page_set.h"
#include "memory/types.h"

namespace godwit::memory {

class FaultLog {
 public:
  // Events of one drain; a program with more of them can't be handed to a successor any more.
  static constexpr std::uint64_t slots_max = 1 << 18;

  struct Entry {
    std::uint64_t view;
    uffd_msg message;
  };
  using Missing = std::map<SpaceId, PageSet>;

  static Result<FaultLog> create(const Missing& missing);
  // Of a pager that is dead. Errc::unsupported if it can't be gone on with.
  static Result<FaultLog> open(UniqueFd fd);
  FaultLog(FaultLog&& other) noexcept;
  FaultLog& operator=(FaultLog&&) = delete;
  ~FaultLog();

  int fd() const { return fd_.get(); }
  const Missing& missing() const { return missing_; }  // After open().
  std::vector<Entry> entries() const;

  // Where to read the next event of `view` to; null once the log is full.
  uffd_msg* slot(std::uint64_t view);
  // What was read there is to be replayed (faults are not: who still waits is woken, and asks
  // again).
  void keep();
  // No page of any view is missing: a successor has nothing to fetch.
  void mark_complete();

 private:
  struct Header;
  FaultLog(UniqueFd fd, void* memory, std::size_t bytes);
  Header& header() const;
  Entry* entry(std::uint64_t index) const;

  UniqueFd fd_;
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
  Missing missing_;
};

}  // namespace godwit::memory
