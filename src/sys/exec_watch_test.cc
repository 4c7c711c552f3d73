#include "sys/exec_watch.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <span>

#include "sys/vdso.h"

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

// As a program that came from another kernel has it: where its auxiliary vector points to is an
// image in ordinary memory that names the end of the real vdso, which lies somewhere else.
bool forward_own_vdso() {
  Result<std::string> image = own_vdso();
  if (!image.ok()) return false;
  const std::size_t bytes = image->size();
  auto* old = reinterpret_cast<std::byte*>(::getauxval(AT_SYSINFO_EHDR));
  // Nothing is mapped for long below the place of the real one.
  const std::size_t room = 2 * vdso_room;
  void* space = ::mmap(nullptr, room + bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (space == MAP_FAILED) return false;
  auto* to = static_cast<std::byte*>(space) + room;
  if (::munmap(space, room) != 0) return false;
  if (::mremap(old, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) return false;
  const auto end = reinterpret_cast<std::uint64_t>(to) + bytes;
  if (!forward_vdso(std::as_writable_bytes(std::span(*image)), end).ok()) return false;
  if (::mmap(old, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
      old)
    return false;
  std::memcpy(old, image->data(), bytes);
  return true;
}

TEST(ExecWatch, AProgramFromAnotherKernelHasNotExecutedOne) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const char done = forward_own_vdso() ? 'y' : 'n';
    if (::write(ready[1], &done, 1) == 1) ::pause();
    ::_exit(1);
  }
  char done = 0;
  ASSERT_EQ(::read(ready[0], &done, 1), 1);
  EXPECT_EQ(done, 'y');
  Result<ExecWatch> watch = ExecWatch::open(child);
  ASSERT_TRUE(watch.ok()) << watch.error().what();
  EXPECT_FALSE(watch->executed());
  ::kill(child, SIGKILL);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(watch->executed());
  for (int fd : ready) ::close(fd);
}

}  // namespace
}  // namespace godwit::sys
