#include "capture/signal_frames.h"

#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csignal>

#include "capture/test_tree.h"
#include "sys/cpuid.h"
#include "sys/proc.h"

namespace godwit::capture {
namespace {

// It says that it is ready before it has closed the pipe by which it says so.
void await_pause(pid_t pid) {
  constexpr int looks_max = 10'000;
  for (int looks = 0; looks < looks_max; ++looks) {
    Result<sys::ProcSyscall> call = sys::read_syscall(pid, pid);
    if (call.ok() && !call->running && call->nr == SYS_pause) return;
    ::usleep(1'000);  // Polls.
  }
  ADD_FAILURE() << "process " << pid << " doesn't come to its pause";
}

// Reasons for a target whose area has so many bytes, of a program that waits inside or outside of a
// signal handler.
std::vector<std::string> reasons_of(bool in_handler, std::uint32_t bytes) {
  Result<TestTree> tree = TestTree::start_function([&](const TestTree::Ready& ready) {
    static TestTree::Ready when_inside;
    when_inside = ready;
    if (!in_handler) {
      ready();
      for (;;) ::pause();
    }
    std::signal(SIGUSR1, [](int) {
      when_inside();
      for (;;) ::pause();
    });
    ::raise(SIGUSR1);
  });
  EXPECT_TRUE(tree.ok()) << tree.error().what();
  await_pause(tree->pid());
  Result<FrozenTree> frozen = freeze(tree->ref());
  EXPECT_TRUE(frozen.ok()) << frozen.error().what();
  image::Capsule described;
  Result<void> done = frozen->describe(described);
  EXPECT_TRUE(done.ok()) << done.error().what();
  Result<std::vector<std::string>> reasons = large_signal_frames(*frozen, described, bytes);
  EXPECT_TRUE(reasons.ok());
  return std::move(reasons).value();
}

class SignalFrames : public testing::Test {
 protected:
  void SetUp() override {
    if (std::string why = why_no_trees(); !why.empty()) GTEST_SKIP() << why;
    bytes_ = sys::signal_xsave_bytes(sys::cpu_features()).value();
  }
  std::uint32_t bytes_ = 0;
};

TEST_F(SignalFrames, AnAreaThatTheTargetDoesNotTakeIsAReason) {
  const std::vector<std::string> reasons = reasons_of(true, bytes_ - 1);
  ASSERT_EQ(reasons.size(), 1u);
  EXPECT_NE(reasons[0].find("is in a signal handler"), std::string::npos) << reasons[0];
}

TEST_F(SignalFrames, AnAreaOfTheTargetsSizeIsNone) {
  EXPECT_TRUE(reasons_of(true, bytes_).empty());
}

TEST_F(SignalFrames, AProgramThatIsInNoHandlerHasNone) {
  EXPECT_TRUE(reasons_of(false, 576).empty());
}

}  // namespace
}  // namespace godwit::capture
