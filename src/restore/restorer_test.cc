#include "restore/restorer.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include "restore/test_support.h"

namespace godwit::restore {
namespace {

class RestorerTest : public testing::Test {
 protected:
  void SetUp() override {
    static const std::string why = why_no_shells();
    if (!why.empty()) GTEST_SKIP() << why;
  }
};

// Tells the test that the program is ready, then waits in read(2) until it has been moved.
void be_moved() {
  char byte = 'r';
  if (write(1, &byte, 1) != 1 || read(0, &byte, 1) != 1) _exit(90);
}

#define MOVE(moved, program, ...)                                 \
  auto moved##_result = move_program(program, ##__VA_ARGS__);     \
  ASSERT_TRUE(moved##_result.ok()) << moved##_result.error().what(); \
  Moved& moved = *moved##_result

void expect_exit(Moved& m, int code) {
  auto status = m.target->wait_child(program_pid);
  ASSERT_TRUE(status.ok()) << status.error().what();
  EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == code) << "status " << std::hex << *status;
}

TEST_F(RestorerTest, AReadGoesOnInTheOtherShell) {
  MOVE(m, [] {
    be_moved();
    return getpid() == program_pid ? 7 : 8;
  });
  ASSERT_TRUE(m.target->write_byte('g').ok());
  expect_exit(m, 7);
}

}  // namespace
}  // namespace godwit::restore
