// Errors inside godwit-init: a number and a phrase, no memory.
#pragma once

#include <cerrno>

namespace godwit::init {

struct [[nodiscard]] Fail {
  int number = 0;         // errno; 0 is success.
  const char* what = "";  // A literal.
  bool failed() const { return number != 0; }
};

inline Fail ok() { return {}; }
inline Fail fail(const char* what, int number = errno) {
  return {number == 0 ? EIO : number, what};
}

}  // namespace godwit::init

// Returns the failure of `expr` from the enclosing function.
#define CHECK(expr)                               \
  do {                                            \
    ::godwit::init::Fail check_fail_ = (expr);    \
    if (check_fail_.failed()) return check_fail_; \
  } while (false)
