#include "base/result.h"

#include <gtest/gtest.h>

#include <memory>

namespace godwit {
namespace {

Result<int> half(int n) {
  if (n % 2 != 0) return make_error(Errc::invalid, "{} is odd", n);
  return n / 2;
}

Result<int> quarter(int n) { return half(TRY(half(n).with("outer"))).with("inner"); }

TEST(Result, TryPassesValuesOn) { EXPECT_EQ(*quarter(8), 2); }

TEST(Result, TryReturnsTheFirstError) {
  Result<int> r = quarter(7);
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code(), Errc::invalid);
  EXPECT_EQ(r.error().what(), "outer: 7 is odd");
}

TEST(Result, EachLayerAddsAPhrase) { EXPECT_EQ(quarter(6).error().what(), "inner: 3 is odd"); }

TEST(Result, OsErrorKeepsErrno) {
  errno = ENOENT;
  Error e = os_error("open(/x)");
  EXPECT_EQ(e.sys_errno(), ENOENT);
  EXPECT_EQ(e.what(), "open(/x): No such file or directory");
}

TEST(Result, CarriesMoveOnlyValues) {
  Result<std::unique_ptr<int>> r = std::make_unique<int>(3);
  EXPECT_EQ(*std::move(r).value(), 3);
}

TEST(InvariantDeathTest, AbortsWithCondition) {
  EXPECT_DEATH(INVARIANT(1 == 2, "round={}", 5), "invariant broken: 1 == 2: round=5");
}

}  // namespace
}  // namespace godwit
