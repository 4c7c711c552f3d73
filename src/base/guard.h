// A change that undoes itself unless it is committed. One undo per guard; destructors cover
// errors, a journal covers death.
#pragma once

#include <utility>

namespace godwit {

template <typename Undo>
class [[nodiscard]] Guard {
 public:
  explicit Guard(Undo undo) : undo_(std::move(undo)) {}
  Guard(Guard&& other) noexcept
      : undo_(std::move(other.undo_)), armed_(std::exchange(other.armed_, false)) {}
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
  Guard& operator=(Guard&&) = delete;
  ~Guard() {
    if (armed_) undo_();
  }
  void commit() { armed_ = false; }

 private:
  Undo undo_;
  bool armed_ = true;
};

}  // namespace godwit
