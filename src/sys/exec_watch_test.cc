#include "sys/exec_watch.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace godwit::sys {
namespace {

// A child that waits for a byte, executes `cat`, and says so by the bytes that come back.
TEST(ExecWatch, TellsAnExecutedProgram) {
  int in[2], out[2];
  ASSERT_EQ(::pipe(in), 0);
  ASSERT_EQ(::pipe(out), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    char byte;
    ::dup2(in[0], 0);
    ::dup2(out[1], 1);
    if (::read(0, &byte, 1) == 1) ::execlp("cat", "cat", nullptr);
    ::_exit(1);
  }
  Result<ExecWatch> watch = ExecWatch::open(child);
  ASSERT_TRUE(watch.ok()) << watch.error().what();
  EXPECT_FALSE(watch->executed());
  char bytes[2] = {'x', 'y'};
  ASSERT_EQ(::write(in[1], bytes, 2), 2);  // One for the child, one for cat.
  ASSERT_EQ(::read(out[0], bytes, 1), 1);
  EXPECT_EQ(bytes[0], 'y');
  EXPECT_TRUE(watch->executed());
  Result<ExecWatch> later = ExecWatch::open(child);
  ASSERT_TRUE(later.ok()) << later.error().what();
  EXPECT_FALSE(later->executed());
  ::close(in[1]);
  int status = 0;
  // cat ends when the last writer of its input has: this process, and the child's own copy.
  ::kill(child, SIGKILL);
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  for (int fd : {in[0], out[0], out[1]}) ::close(fd);
  EXPECT_TRUE(later->executed());
}

}  // namespace
}  // namespace godwit::sys
