#include "migrate/commit_record.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <thread>
#include <vector>

#include "base/io.h"

namespace godwit::migrate {
namespace {

class CommitRecordTest : public testing::Test {
 protected:
  CommitRecordTest() {
    char name[] = "/tmp/godwit-commit-XXXXXX";
    dir_ = ::mkdtemp(name);
    path_ = dir_ + "/c1";
  }
  ~CommitRecordTest() override { std::filesystem::remove_all(dir_); }

  RecordContent offered() {
    RecordContent content;
    content.state = static_cast<std::uint32_t>(TargetState::offered);
    content.epoch = Epoch{7};
    content.boot = "0b1c-boot";
    return content;
  }
  static constexpr auto offered_state = static_cast<std::uint32_t>(TargetState::offered);
  static constexpr auto granted_state = static_cast<std::uint32_t>(TargetState::granted);
  static constexpr auto refused_state = static_cast<std::uint32_t>(TargetState::refused);

  std::string dir_, path_;
};

TEST_F(CommitRecordTest, SurvivesReopening) {
  RecordContent content = offered();
  content.worker_pid = 12;
  content.worker_start_ticks = 34;
  ASSERT_TRUE(CommitRecord::create(path_, content, true).ok());
  Result<CommitRecord> record = CommitRecord::open(path_, true);
  ASSERT_TRUE(record.ok());
  RecordContent back = record->read().value();
  EXPECT_EQ(back.state, offered_state);
  EXPECT_EQ(back.epoch, Epoch{7});
  EXPECT_EQ(back.boot, "0b1c-boot");
  EXPECT_EQ(back.worker_pid, 12);
  EXPECT_EQ(back.worker_start_ticks, 34u);
}

// In the calling thread, until it ends: every fdatasync(2) finds the disk full.
void let_syncs_fail() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fdatasync, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSPC),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter{.len = std::size(code), .filter = code};
  ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  ASSERT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter), 0);
}

// Else the target would tell a grant that it gave up on, and the source give its copy up for it.
TEST_F(CommitRecordTest, AChangeThatCannotBeSyncedHasNotHappened) {
  CommitRecord record = CommitRecord::create(path_, offered(), true).value();
  std::thread([&] {
    let_syncs_fail();
    Result<std::uint32_t> changed = record.change(Epoch{7}, offered_state, granted_state);
    ASSERT_FALSE(changed.ok());
    EXPECT_EQ(changed.error().sys_errno(), ENOSPC);
  }).join();
  EXPECT_EQ(record.read()->state, offered_state);
  EXPECT_EQ(*record.change(Epoch{7}, offered_state, refused_state), refused_state);
}

TEST_F(CommitRecordTest, FirstDecisionIsFinal) {
  CommitRecord record = CommitRecord::create(path_, offered(), false).value();
  EXPECT_EQ(*record.change(Epoch{7}, offered_state, refused_state), refused_state);
  EXPECT_EQ(*record.change(Epoch{7}, offered_state, granted_state), refused_state);
}

TEST_F(CommitRecordTest, OtherEpochsAreRefused) {
  CommitRecord record = CommitRecord::create(path_, offered(), false).value();
  Result<std::uint32_t> r = record.change(Epoch{6}, offered_state, granted_state);
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code(), Errc::refused);
}

TEST_F(CommitRecordTest, ManyDecidersAgree) {
  (void)CommitRecord::create(path_, offered(), false).value();
  std::atomic<int> granted{0}, refused{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      CommitRecord mine = CommitRecord::open(path_, false).value();
      std::uint32_t stands =
          *mine.change(Epoch{7}, offered_state, i % 2 == 0 ? granted_state : refused_state);
      ++(stands == granted_state ? granted : refused);
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_TRUE((granted == 8 && refused == 0) || (granted == 0 && refused == 8));
}

TEST_F(CommitRecordTest, ADamagedRecordIsAnErrorNeverAState) {
  for (int at = 0; at < 128; ++at) {
    (void)CommitRecord::create(path_, offered(), false).value();
    UniqueFd fd = open_fd(path_, O_RDWR).value();
    unsigned char byte = 0;
    ASSERT_EQ(::pread(fd.get(), &byte, 1, at), 1);
    byte ^= 0x10;
    ASSERT_EQ(::pwrite(fd.get(), &byte, 1, at), 1);
    Result<RecordContent> r = CommitRecord::open(path_, false)->read();
    ASSERT_FALSE(r.ok()) << "byte " << at;
    EXPECT_EQ(r.error().code(), Errc::invalid);
  }
}

TEST_F(CommitRecordTest, MissingIsNotFound) {
  EXPECT_EQ(CommitRecord::open(path_, false).error().code(), Errc::not_found);
}

TEST(WorkerAlive, TellsAReusedPid) {
  RecordContent content;
  content.worker_pid = ::getpid();
  content.worker_start_ticks = process_start_ticks(::getpid()).value();
  EXPECT_TRUE(worker_alive(content));
  content.worker_start_ticks += 1;
  EXPECT_FALSE(worker_alive(content));
}

}  // namespace
}  // namespace godwit::migrate
