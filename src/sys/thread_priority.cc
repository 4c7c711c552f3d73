#include "sys/thread_priority.h"

#include <errno.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "sys/sched_attr.h"

namespace godwit::sys {

namespace {

constexpr std::int32_t raised_nice = -15;
constexpr std::uint64_t flag_reset_on_fork = 1;
constexpr std::uint64_t least_slice_ns = 100'000;

void short_slices(int nice) {
  const SchedAttr attr{
      .policy = SCHED_OTHER, .flags = flag_reset_on_fork, .nice = nice, .runtime = least_slice_ns};
  (void)::syscall(SYS_sched_setattr, 0, &attr, 0);  // Nothing depends on it but smoothness.
}

}  // namespace

bool raise_thread_priority() {
  sched_param param{};
  param.sched_priority = 1;
  // Not for threads that this one starts: those copy in bulk.
  if (::sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &param) == 0) return true;
  // Control groups with a share of real time but none for ours (CONFIG_RT_GROUP_SCHED). Who runs
  // with the shortest slice that there is (6.12; before, it is ignored) goes on as soon as it wakes
  // up, while others wait for the end of somebody's slice of 3 ms, at every wait.
  const SchedAttr attr{.policy = SCHED_OTHER,
                       .flags = flag_reset_on_fork,
                       .nice = raised_nice,
                       .runtime = least_slice_ns};
  if (::syscall(SYS_sched_setattr, 0, &attr, 0) == 0) return true;
  return ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), raised_nice) == 0;
}

void lower_thread_priority() { short_slices(0); }

void shorten_thread_slice() {
  errno = 0;
  const int nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()));
  if (errno == 0) short_slices(nice);
}

}  // namespace godwit::sys
