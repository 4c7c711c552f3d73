#include "restore/moved_program.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <utility>

#include "base/clock.h"
#include "sys/proc.h"

namespace godwit::restore {
namespace {

constexpr std::int64_t hour_ns = 3600 * second_ns;

}  // namespace

Result<void> wait_until_asleep(pid_t pid) {
  constexpr int looks = 100'000;
  for (int i = 0; i < looks; ++i) {
    sys::ProcSyscall call = TRY(sys::read_syscall(pid, pid));
    if (!call.running && call.nr >= 0 && call.nr != SYS_write) return {};
    sched_yield();
  }
  return make_error(Errc::timeout, "process {} doesn't wait in a system call", pid);
}

Result<Moved> move_program(const std::function<int()>& program, const ChangeImage& change,
                           const Start& start) {
  Moved m;
  m.source = TRY(TestShell::create(program));
  // Other clocks than here: what the program sees must go on.
  TRY(m.source->set_clocks(2 * hour_ns, hour_ns));
  pid_t running = TRY(m.source->spawn(program_pid));
  m.target = TRY(TestShell::create());
  TRY(m.source->read_byte().with("waiting until the program is ready"));
  TRY(wait_until_asleep(running));
  StoppedProgram stopped = TRY(StoppedProgram::stop(running, program_pid));
  m.image = TRY(stopped.describe());
  m.image.mutable_clocks()->set_monotonic_ns(m.image.clocks().monotonic_ns() + 2 * hour_ns);
  m.image.mutable_clocks()->set_boottime_ns(m.image.clocks().boottime_ns() + hour_ns);
  std::int64_t stopped_at = monotonic_ns();
  if (change) change(m.image);
  m.restorer = std::make_unique<Restorer>(TRY(Restorer::create(*m.target)));
  TRY(m.restorer->align_clocks(2 * hour_ns, hour_ns));
  std::int64_t at = monotonic_us();
  auto lap = [&](std::int64_t& us) { us = std::exchange(at, monotonic_us()), us = at - us; };
  TRY(m.restorer->prepare(m.image));
  lap(m.prepare_us);
  TRY(m.restorer->prepare_final(m.image));
  TRY(stopped.copy_content(m.image, *m.restorer));
  at = monotonic_us();
  TRY(m.restorer->finish(m.image, monotonic_ns() - stopped_at));
  lap(m.finish_us);
  m.node_pid = m.restorer->processes()[0].second;
  TRY(m.restorer->seal());
  lap(m.seal_us);
  m.source->kill_init();
  at = monotonic_us();
  TRY(start ? start(m) : m.restorer->start());
  lap(m.start_us);
  return m;
}

void be_moved() {
  char byte = 'r';
  CHECK_HERE(write(1, &byte, 1) == 1);
  CHECK_HERE(read(0, &byte, 1) == 1);
}

void finishes_well(Moved& m) {
  auto status = m.target->wait_child(program_pid);
  ASSERT_TRUE(status.ok()) << status.error().what();
  if (WIFEXITED(*status) && WEXITSTATUS(*status) == 0) return;
  fcntl(m.target->stdout_fd(), F_SETFL, O_NONBLOCK);
  char text[1000] = {};
  (void)!read(m.target->stdout_fd(), text, sizeof text - 1);
  ADD_FAILURE() << "wait status " << std::hex << *status << ": " << text;
}

}  // namespace godwit::restore
