#include "sys/proc.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace godwit::sys {
namespace {

// About one in a thousand looks meets a thread that has left the table of numbers already.
TEST(ReadStatus, AThreadThatEndsHasItsNumberOrIsGone) {
  std::atomic<bool> enough{false};
  std::thread churn([&] {
    while (!enough) {
      std::thread one([] {}), another([] {});
      one.join(), another.join();
    }
  });
  int told = 0, gone = 0;
  for (int looks = 0; looks < 50'000;) {
    Result<std::vector<pid_t>> threads = list_threads(::getpid());
    EXPECT_TRUE(threads.ok()) << threads.error().what();
    if (!threads.ok()) break;
    for (pid_t tid : *threads) {
      ++looks;
      Result<ProcStatus> status = read_status(::getpid(), tid);
      if (!status.ok()) {
        EXPECT_EQ(status.error().code(), Errc::tracee_gone) << status.error().what();
        ++gone;
        continue;
      }
      EXPECT_EQ(status->ns_pid.back(), tid);
      ++told;
    }
  }
  enough = true;
  churn.join();
  EXPECT_GT(told, 0);
  EXPECT_GT(gone, 0);
}

TEST(ParseSmaps, LockedOnFaultByOldKernelsToo) {
  const auto flags = [](const std::string& shown) {
    return parse_smaps("7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \nVmFlags: " + shown +
                       "\n");
  };
  EXPECT_TRUE(flags("rd wr mr mw me lo lf ac ")[0].has("lf"));
  EXPECT_TRUE(flags("rd wr mr mw me lo ac ?? ")[0].has("lf"));
  EXPECT_FALSE(flags("rd wr mr mw me lo ac ")[0].has("lf"));
  EXPECT_FALSE(flags("rd wr mr mw me ?? ")[0].has("lf"));
}

}  // namespace
}  // namespace godwit::sys
