#include "daemon/accounts.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace godwit::daemon {
namespace {

TEST(Accounts, RootIsFoundByUidNameAndNumber) {
  for (const auto& account : {account_of(0), account_named("root"), account_named("0")}) {
    ASSERT_TRUE(account.ok()) << account.error().what();
    EXPECT_EQ(account->name, "root");
    EXPECT_EQ(account->uid, 0u);
    EXPECT_NE(std::find(account->groups.begin(), account->groups.end(), account->gid),
              account->groups.end());
  }
}

TEST(Accounts, StrangersAreNotFound) {
  EXPECT_EQ(account_of(4'000'000'001).error().code(), Errc::not_found);
  EXPECT_EQ(account_named("no-such-user").error().code(), Errc::not_found);
  EXPECT_EQ(account_named("").error().code(), Errc::not_found);
}

TEST(Accounts, ATargetMustKnowTheSameUserByTheSameUid) {
  EXPECT_EQ(account_mismatch("root", 0), "");
  EXPECT_NE(account_mismatch("alice", 0), "");
  EXPECT_NE(account_mismatch("alice", 4'000'000'001), "");
}

}  // namespace
}  // namespace godwit::daemon
