#include "sys/interrupted_sleep.h"

#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace godwit::sys {
namespace {

TEST(InterruptedSleep, SurvivesItsTextAndWrongLinesAreLeftOut) {
  const InterruptedSleep sleep{7, SYS_futex, {1, 2, 3, ~0ull, 5, 6}, -9, 11};
  const auto read =
      interrupted_sleeps_from_text("nonsense\n" + to_text(std::span(&sleep, 1)) + "1 2 3");
  ASSERT_EQ(read.size(), 1u);
  EXPECT_EQ(to_text(read), to_text(std::span(&sleep, 1)));
}

TEST(InterruptedSleep, LastsOnlyWhileTheThreadSleepsForTheFirstTimeSince) {
  const InterruptedSleep sleep{7, SYS_nanosleep, {1, 2, 3, 4, 5, 6}, 0, 11};
  Regs regs = {};
  regs.orig_rax = SYS_restart_syscall;
  regs.rdi = 1, regs.rsi = 2, regs.rdx = 3, regs.r10 = 4, regs.r8 = 5, regs.r9 = 6;
  EXPECT_TRUE(sleep.lasts(12, regs));
  EXPECT_FALSE(sleep.lasts(13, regs));
  EXPECT_TRUE(sleep.explains(regs));  // Which call it is doesn't depend on when.
  EXPECT_FALSE(sleep.lasts(11, regs));
  regs.rdi = 2;
  EXPECT_FALSE(sleep.lasts(12, regs));
  regs.rdi = 1;
  regs.orig_rax = SYS_nanosleep;
  EXPECT_FALSE(sleep.lasts(12, regs));
}

TEST(InterruptedSleep, SleepingIsCountedAsAVoluntarySwitch) {
  const auto before = read_voluntary_switches(getpid(), gettid());
  ASSERT_TRUE(before.ok()) << before.error().what();
  usleep(2000);  // Polls nothing: the nap is what is counted.
  const auto after = read_voluntary_switches(getpid(), gettid());
  ASSERT_TRUE(after.ok()) << after.error().what();
  EXPECT_GT(*after, *before);
}

}  // namespace
}  // namespace godwit::sys
