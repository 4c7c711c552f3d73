// Programs that come from a kernel with another vdso: here this kernel's own, with another build
// id.
#include <elf.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "base/io.h"
#include "restore/moved_program.h"
#include "sys/vdso.h"

namespace godwit::restore {
namespace {

class ForeignVdso : public testing::Test {
 protected:
  void SetUp() override {
    static const std::string why = why_no_shells();
    if (!why.empty()) GTEST_SKIP() << why;
  }
};

std::uint64_t vdso_in_maps() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);)
    if (line.ends_with("[vdso]")) return std::stoull(line, nullptr, 16);
  return 0;
}

// As from another kernel: same code here, but nobody may rely on that.
void make_foreign(image::Capsule& image) {
  std::string vdso = sys::own_vdso().value();
  const std::string id = sys::own_vdso_build_id().value();
  vdso[vdso.find(id)] ^= 1;
  image.mutable_processes(0)->mutable_mm()->set_vdso(vdso);
}

// What libc looked up at the start of the program leads to this kernel's clocks.
void clocks_are_right() {
  timespec before{}, now{}, after{};
  CHECK_HERE(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &before) == 0);
  CHECK_HERE(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
  CHECK_HERE(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &after) == 0);
  auto ns = [](const timespec& t) { return t.tv_sec * 1'000'000'000LL + t.tv_nsec; };
  CHECK_HERE(ns(before) <= ns(now) && ns(now) <= ns(after));
  timeval tv{};
  CHECK_HERE(gettimeofday(&tv, nullptr) == 0 && time(nullptr) - tv.tv_sec <= 1);
  unsigned cpu = 0;
  CHECK_HERE(getcpu(&cpu, nullptr) == 0 && cpu < 4096);
  CHECK_HERE(clock_getres(CLOCK_REALTIME, &now) == 0 && now.tv_nsec > 0);
}

TEST_F(ForeignVdso, FunctionsLeadToTheVdsoOfThisKernel) {
  auto moved = move_program(
      [] {
        const std::uint64_t mine = getauxval(AT_SYSINFO_EHDR);
        CHECK_HERE(vdso_in_maps() == mine);
        be_moved();
        CHECK_HERE(vdso_in_maps() != mine);
        CHECK_HERE(std::memcmp(reinterpret_cast<const void*>(mine), ELFMAG, SELFMAG) == 0);
        // Where a tracer of the next move looks.
        const sys::VdsoPlace place = sys::find_vdso(getpid()).value();
        CHECK_HERE(place.contains(vdso_in_maps()));
        clocks_are_right();
        return 0;
      },
      make_foreign);
  ASSERT_TRUE(moved.ok()) << moved.error().what();
  ASSERT_TRUE((*moved).target->write_byte('g').ok());
  finishes_well(*moved);
}

TEST_F(ForeignVdso, AForwardedProgramFindsTheNextKernelsVdsoAtTheSameEnd) {
  auto first = move_program(
      [] {
        be_moved();
        be_moved();
        clocks_are_right();
        return 0;
      },
      make_foreign);
  ASSERT_TRUE(first.ok()) << first.error().what();
  Moved& m = *first;
  ASSERT_TRUE(m.target->write_byte('g').ok());
  auto ready = m.target->read_byte();
  ASSERT_TRUE(ready.ok()) << ready.error().what();
  ASSERT_TRUE(wait_until_asleep(m.node_pid).ok());
  const std::uint64_t end = sys::find_vdso(m.node_pid).value().end;

  auto stopped = StoppedProgram::stop(m.node_pid, program_pid);
  ASSERT_TRUE(stopped.ok()) << stopped.error().what();
  image::Capsule image = (*stopped).describe().value();
  make_foreign(image);  // Without effect: its code isn't the kernel's any more.
  auto shell = TestShell::create();
  ASSERT_TRUE(shell.ok()) << shell.error().what();
  auto restorer = Restorer::create(**shell);
  ASSERT_TRUE(restorer.ok());
  ASSERT_TRUE((*restorer).prepare(image).ok());
  ASSERT_TRUE((*stopped).copy_content(image, *restorer).ok());
  ASSERT_TRUE((*restorer).finish(image, 0).ok());
  ASSERT_TRUE((*restorer).seal().ok());
  ASSERT_TRUE((*restorer).start().ok());
  const pid_t there = (*restorer).processes().at(0).second;
  EXPECT_EQ(sys::find_vdso(there).value().end, end);
  ASSERT_TRUE((**shell).write_byte('g').ok());
  auto status = (**shell).wait_child(program_pid);
  ASSERT_TRUE(status.ok()) << status.error().what();
  EXPECT_EQ(*status, 0);
}

}  // namespace
}  // namespace godwit::restore
