#include "sys/thread_attr.h"

#include <linux/ioprio.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys/sched_attr.h"
#include "sys/tracee_error.h"

namespace godwit::sys {
namespace {

constexpr std::size_t cpus_max = 8192;  // CONFIG_NR_CPUS of distributions.

}  // namespace

Result<ThreadAttr> read_thread_attr(pid_t tid) {
  ThreadAttr out;
  SchedAttr attr{};
  if (::syscall(SYS_sched_getattr, tid, &attr, sizeof attr, 0) < 0)
    return tracee_error("sched_getattr", tid);
  out.policy = attr.policy, out.flags = attr.flags;
  // What it was before it became real-time, or idle, comes back when that ends.
  errno = 0;
  out.nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(tid));
  if (out.nice == -1 && errno != 0) return tracee_error("getpriority", tid);
  out.rt_priority = attr.priority;
  out.dl_runtime = attr.runtime, out.dl_deadline = attr.deadline, out.dl_period = attr.period;

  unsigned char mask[cpus_max / 8] = {};
  long bytes = ::syscall(SYS_sched_getaffinity, tid, sizeof mask, mask);
  if (bytes < 0) return tracee_error("sched_getaffinity", tid);
  for (std::uint32_t cpu = 0; cpu < static_cast<std::uint32_t>(bytes) * 8; ++cpu)
    if (mask[cpu / 8] & (1u << (cpu % 8))) out.affinity.push_back(cpu);
  if (static_cast<long>(out.affinity.size()) >= ::sysconf(_SC_NPROCESSORS_ONLN))
    out.affinity.clear();

  long ioprio = ::syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid);
  if (ioprio < 0) return tracee_error("ioprio_get", tid);
  out.ioprio = static_cast<std::uint32_t>(ioprio);

  void* head = nullptr;
  std::size_t length = 0;
  if (::syscall(SYS_get_robust_list, tid, &head, &length) < 0)
    return tracee_error("get_robust_list", tid);
  out.robust_list = reinterpret_cast<std::uint64_t>(head), out.robust_list_len = length;
  return out;
}

Result<std::uint64_t> read_core_cookie(pid_t tid) {
  unsigned long cookie = 0;
  if (::prctl(PR_SCHED_CORE, PR_SCHED_CORE_GET, tid, 0 /* PIDTYPE_PID */, &cookie) == 0)
    return cookie;
  if (errno == EINVAL || errno == ENODEV) return 0;
  return tracee_error("prctl(PR_SCHED_CORE)", tid);
}

}  // namespace godwit::sys
