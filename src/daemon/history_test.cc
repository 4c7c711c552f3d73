#include "daemon/history.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/io.h"

namespace godwit::daemon {
namespace {

class HistoryTest : public testing::Test {
 protected:
  void SetUp() override { path_ = testing::TempDir() + "/godwit-history-" + random_hex(6); }
  void TearDown() override {
    for (const char* suffix : {"", "-wal", "-shm"}) std::filesystem::remove(path_ + suffix);
  }
  std::unique_ptr<History> open() {
    auto history = History::open(path_);
    EXPECT_TRUE(history.ok());
    return std::move(history).value();
  }
  static api::MigrationResult migration(int number, std::uint32_t uid) {
    api::MigrationResult m;
    m.set_id("m" + std::to_string(number));
    m.set_capsule("c1");
    m.set_capsule_id("00000000000000a1");
    m.set_uid(uid);
    m.set_outcome("moved");
    m.set_started_realtime_us(1'000 + number);
    m.set_downtime_us(42);
    auto* round = m.add_rounds();
    round->set_pages(5);
    round->set_bytes(5 * 4096);
    m.add_phases()->set_name("freeze");
    return m;
  }
  std::string path_;
};

TEST_F(HistoryTest, KeepsRoundsAndPhasesAcrossRestarts) {
  ASSERT_TRUE(open()->record(migration(1, 0)).ok());
  auto list = open()->list({.any_user = true});
  ASSERT_TRUE(list.ok());
  ASSERT_EQ(list->size(), 1u);
  EXPECT_EQ((*list)[0].SerializeAsString(), migration(1, 0).SerializeAsString());
}

TEST_F(HistoryTest, NewestFirstAndAtMostTheLimit) {
  auto history = open();
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(history->record(migration(i, 0)).ok());
  auto list = history->list({.any_user = true, .limit = 3});
  ASSERT_TRUE(list.ok());
  ASSERT_EQ(list->size(), 3u);
  EXPECT_EQ((*list)[0].id(), "m9");
  EXPECT_EQ((*list)[2].id(), "m7");
}

TEST_F(HistoryTest, UsersSeeTheirOwnOnly) {
  auto history = open();
  ASSERT_TRUE(history->record(migration(1, 1000)).ok());
  ASSERT_TRUE(history->record(migration(2, 1001)).ok());
  auto list = history->list({.uid = 1001});
  ASSERT_TRUE(list.ok());
  ASSERT_EQ(list->size(), 1u);
  EXPECT_EQ((*list)[0].id(), "m2");
}

TEST_F(HistoryTest, ACapsuleIsFoundByNameAndById) {
  auto history = open();
  ASSERT_TRUE(history->record(migration(1, 0)).ok());
  EXPECT_EQ(history->list({.capsule = "c1", .any_user = true})->size(), 1u);
  EXPECT_EQ(history->list({.capsule = "00000000000000a1", .any_user = true})->size(), 1u);
  EXPECT_EQ(history->list({.capsule = "c1' OR '1", .any_user = true})->size(), 0u);
}

TEST_F(HistoryTest, TheEndOfADoubtReplacesIt) {
  auto history = open();
  auto m = migration(1, 0);
  m.set_outcome("in-doubt");
  ASSERT_TRUE(history->record(m).ok());
  m.set_outcome("stayed");
  ASSERT_TRUE(history->record(m).ok());
  auto list = history->list({.any_user = true});
  ASSERT_TRUE(list.ok());
  ASSERT_EQ(list->size(), 1u);
  EXPECT_EQ((*list)[0].outcome(), "stayed");
}

}  // namespace
}  // namespace godwit::daemon
