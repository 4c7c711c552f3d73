#include "daemon/store.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/io.h"

namespace godwit::daemon {
namespace {

class StoreTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/godwit-store-" + random_hex(6);
    std::filesystem::create_directories(dir_);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  Store open() {
    auto store = Store::open(dir_);
    EXPECT_TRUE(store.ok());
    return std::move(store).value();
  }
  static node::CapsuleRecord record(const std::string& id) {
    node::CapsuleRecord record;
    record.mutable_spec()->set_id(id);
    record.mutable_spec()->set_name("c-" + id);
    record.mutable_spec()->add_argv("prog\xc3\xa4m");
    record.set_state("running");
    record.set_epoch(7);
    record.set_attach_id(~std::uint64_t{0} - 5);
    return record;
  }
  std::string dir_;
};

TEST_F(StoreTest, AnotherDaemonFindsWhatOneSaved) {
  ASSERT_TRUE(open().save(record("00000000000000a1")).ok());
  ASSERT_TRUE(open().save(record("00000000000000a2")).ok());
  auto found = open().load();
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->size(), 2u);
  for (const auto& one : *found) {
    EXPECT_EQ(one.SerializeAsString(), record(one.spec().id()).SerializeAsString());
  }
}

TEST_F(StoreTest, SavingAgainReplaces) {
  const Store store = open();
  auto one = record("00000000000000a1");
  ASSERT_TRUE(store.save(one).ok());
  one.set_state("exited");
  one.set_wait_status(0x700);
  ASSERT_TRUE(store.save(one).ok());
  auto found = store.load();
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->size(), 1u);
  EXPECT_EQ((*found)[0].state(), "exited");
  EXPECT_EQ((*found)[0].wait_status(), 0x700);
}

TEST_F(StoreTest, ADamagedRecordHidesNoOther) {
  const Store store = open();
  ASSERT_TRUE(store.save(record("00000000000000a1")).ok());
  ASSERT_TRUE(replace_file(dir_ + "/registry/00000000000000a2.json", "{\"spec\": ", false).ok());
  auto found = store.load();
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->size(), 1u);
}

TEST_F(StoreTest, OutputOfAnEndedCapsuleIsKeptByteForByte) {
  const Store store = open();
  const CapsuleId id{"00000000000000a1"};
  node::SavedLog log;
  auto* chunk = log.add_chunks();
  chunk->set_from(100);
  chunk->set_stream(2);
  chunk->set_data(std::string("\0\xff\n", 3));
  log.set_end(103);
  ASSERT_TRUE(store.save_log(id, log).ok());
  auto kept = store.load_log(id);
  ASSERT_TRUE(kept.ok());
  EXPECT_EQ(kept->SerializeAsString(), log.SerializeAsString());
  ASSERT_TRUE(store.remove(id).ok());
  EXPECT_FALSE(store.load_log(id).ok());
  EXPECT_TRUE(store.remove(id).ok()) << "removing what isn't there is success";
}

TEST_F(StoreTest, HintsOfMovedCapsulesAreKeptUntilForgotten) {
  const Store store = open();
  const CapsuleId id{"00000000000000a1"};
  ASSERT_TRUE(store.save_moved(id, NodeId{"n3"}).ok());
  auto moved = open().load_moved();
  ASSERT_TRUE(moved.ok());
  EXPECT_EQ(moved->at(id.value), "n3");
  ASSERT_TRUE(store.forget_moved(id).ok());
  EXPECT_TRUE(store.load_moved()->empty());
}

TEST_F(StoreTest, OnlyRootCanReadIt) {
  open();
  const auto mode = std::filesystem::status(dir_ + "/registry").permissions();
  EXPECT_EQ(mode & std::filesystem::perms::all, std::filesystem::perms::owner_all);
}

}  // namespace
}  // namespace godwit::daemon
