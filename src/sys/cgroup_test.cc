#include "sys/cgroup.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "base/clock.h"
#include "base/io.h"

namespace godwit::sys {
namespace {

class Cgroup : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: control groups";
    Result<std::vector<CgroupHierarchy>> mounted = mounted_cgroups();
    ASSERT_TRUE(mounted.ok()) << mounted.error().what();
    if (mounted->empty()) GTEST_SKIP() << "no cgroup hierarchy is mounted";
    base_ = fmt::format("godwit-test-{}-{}", ::getpid(), random_hex(3));
  }
  void TearDown() override {
    if (base_.empty()) return;
    EXPECT_TRUE(CgroupGroup::remove(base_).ok());
  }

  CgroupGroup make(const std::string& name) {
    Result<CgroupGroup> group = CgroupGroup::create(base_ + "/" + name);
    if (!group.ok()) ADD_FAILURE() << group.error().what();
    return std::move(group).value();
  }

  // A child that spins, already in the group.
  static pid_t spin_in(const CgroupGroup& group) {
    pid_t pid = ::fork();
    if (pid == 0) {
      while (true) {
      }
    }
    Result<void> added = group.add(pid);
    if (!added.ok()) ADD_FAILURE() << added.error().what();
    return pid;
  }

  static std::uint64_t ticks_of(pid_t pid) {
    std::string stat = std::move(read_file(fmt::format("/proc/{}/schedstat", pid))).value();
    return std::stoull(stat);
  }

  std::string base_;
};

TEST_F(Cgroup, EachHierarchyIsFoundOnceV2First) {
  std::vector<CgroupHierarchy> mounted = std::move(mounted_cgroups()).value();
  EXPECT_TRUE(std::is_sorted(mounted.begin(), mounted.end(),
                             [](const auto& a, const auto& b) { return a.v2 && !b.v2; }));
  EXPECT_LE(std::count_if(mounted.begin(), mounted.end(), [](const auto& h) { return h.v2; }), 1);
}

TEST_F(Cgroup, FrozenProcessGetsNoTimeAndGoesOnAfterwards) {
  CgroupGroup group = make("a/tree");
  pid_t pid = spin_in(group);
  EXPECT_FALSE(std::move(group.is_frozen()).value());
  Result<void> frozen = group.freeze();
  ASSERT_TRUE(frozen.ok()) << frozen.error().what();
  EXPECT_TRUE(std::move(group.is_frozen()).value());
  std::uint64_t before = ticks_of(pid);
  std::int64_t until_us = monotonic_us() + 30'000;
  while (monotonic_us() < until_us) std::this_thread::yield();
  EXPECT_EQ(ticks_of(pid), before);
  ASSERT_TRUE(group.thaw().ok());
  until_us = monotonic_us() + 60'000'000;
  while (ticks_of(pid) == before && monotonic_us() < until_us) std::this_thread::yield();
  EXPECT_GT(ticks_of(pid), before);
  EXPECT_EQ(std::move(group.pids()).value(), std::vector<pid_t>{pid});
  // Frozen or not, it dies.
  ASSERT_TRUE(group.freeze().ok());
  std::thread reaper([pid] { ::waitpid(pid, nullptr, 0); });
  Result<void> killed = group.kill_all();
  EXPECT_TRUE(killed.ok()) << killed.error().what();
  reaper.join();
  EXPECT_TRUE(std::move(group.pids()).value().empty());
}

TEST_F(Cgroup, LeavesHoldProcessesAndTheirParentCountsBoth) {
  CgroupGroup tree = make("a/tree");
  CgroupGroup init = make("a/init");
  pid_t one = spin_in(tree);
  pid_t two = spin_in(init);
  Result<CgroupGroup> parent = CgroupGroup::open(base_ + "/a");
  ASSERT_TRUE(parent.ok()) << parent.error().what();
  std::vector<pid_t> both = {std::min(one, two), std::max(one, two)};
  EXPECT_EQ(std::move(parent->pids()).value(), both);
  EXPECT_EQ(std::move(tree.pids()).value(), std::vector<pid_t>{one});
  std::int64_t until_us = monotonic_us() + 60'000'000;
  while (*parent->cpu_usage_us() == 0 && monotonic_us() < until_us) std::this_thread::yield();
  EXPECT_GT(*parent->cpu_usage_us(), 0U);
  std::thread reaper([one, two] {
    ::waitpid(one, nullptr, 0);
    ::waitpid(two, nullptr, 0);
  });
  EXPECT_TRUE(CgroupGroup::remove(base_ + "/a").ok());
  reaper.join();
  EXPECT_EQ(CgroupGroup::open(base_ + "/a").error().code(), Errc::not_found);
  EXPECT_TRUE(CgroupGroup::remove(base_ + "/a").ok());
}

TEST_F(Cgroup, LimitsAreWhatTheKernelSays) {
  CgroupGroup group = make("a/tree");
  Result<void> quota = group.set_cpu_quota(1.5);
  if (!quota.ok()) {
    EXPECT_EQ(quota.error().code(), Errc::unsupported) << quota.error().what();
    GTEST_SKIP() << quota.error().what();
  }
  for (const CgroupGroup::Place& place : group.places()) {
    if (!place.hierarchy.has("cpu")) continue;
    std::string text = place.hierarchy.v2
                           ? std::move(read_file(place.path + "/cpu.max")).value()
                           : std::move(read_file(place.path + "/cpu.cfs_quota_us")).value();
    EXPECT_TRUE(text.starts_with("150000")) << text;
  }
  EXPECT_TRUE(group.set_cpu_quota(0).ok());
  EXPECT_TRUE(group.set_memory_limit(64 << 20).ok());
  EXPECT_TRUE(group.set_memory_limit(0).ok());
  EXPECT_LT(*group.memory_usage_bytes(), std::uint64_t{1} << 40);
}

TEST_F(Cgroup, AWeightGoesBackToThatOfANewGroup) {
  CgroupGroup group = make("a/tree");
  auto weight = [&] {
    for (const CgroupGroup::Place& place : group.places()) {
      if (!place.hierarchy.has("cpu")) continue;
      const std::string file = place.hierarchy.v2 ? "/cpu.weight" : "/cpu.shares";
      return std::move(read_file(place.path + file)).value();
    }
    return std::string();
  };
  const std::string fresh = weight();
  Result<void> hurried = group.hurry(true);
  if (!hurried.ok()) {
    EXPECT_EQ(hurried.error().code(), Errc::unsupported) << hurried.error().what();
    GTEST_SKIP() << hurried.error().what();
  }
  EXPECT_GT(std::stoul(weight()), std::stoul(fresh));
  EXPECT_TRUE(group.hurry(false).ok());
  EXPECT_EQ(weight(), fresh);
}

TEST_F(Cgroup, NamesCantEscape) {
  EXPECT_EQ(CgroupGroup::create("../x").error().code(), Errc::invalid);
  EXPECT_EQ(CgroupGroup::create("/x").error().code(), Errc::invalid);
  EXPECT_EQ(CgroupGroup::create("").error().code(), Errc::invalid);
  EXPECT_EQ(CgroupGroup::remove("a/../../x").error().code(), Errc::invalid);
}

}  // namespace
}  // namespace godwit::sys
