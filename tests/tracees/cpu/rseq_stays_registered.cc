// glibc registers rseq for each thread: the processor number in it is kept up to date after the
// move.
#include <sched.h>
#include <sys/rseq.h>

#include "tracee.h"
using namespace tracee;

struct rseq* own_rseq() {
  return reinterpret_cast<struct rseq*>(static_cast<char*>(__builtin_thread_pointer()) +
                                        __rseq_offset);
}

bool cpu_id_right() {
  // Between the two reads the thread may be put elsewhere: then again.
  for (int i = 0; i < 1000; ++i) {
    unsigned before = *const_cast<volatile unsigned*>(&own_rseq()->cpu_id);
    unsigned cpu = 0;
    syscall(SYS_getcpu, &cpu, nullptr, nullptr);
    if (before == cpu) return true;
  }
  return false;
}

int main() {
  if (__rseq_size == 0 || static_cast<int>(own_rseq()->cpu_id) < 0)
    skip("rseq isn't registered by this libc and kernel");
  auto watch = [](std::atomic<bool>& stop) {
    while (!stop) {
      if (!check(cpu_id_right(), "cpu_id %u is stale", own_rseq()->cpu_id)) return;
      usleep(100);
    }
    // The registration of this very address is still there: another one is refused with EBUSY.
    constexpr uint32_t signature = 0x53053053;
    check(syscall(SYS_rseq, own_rseq(), 32, 0, signature) == -1 && errno == EBUSY,
          "registering again gives errno %d", errno);
  };
  Background a(watch), b(watch);
  ready();
  wait_moved();
  a.finish();
  b.finish();
  check(cpu_id_right(), "cpu_id of the main thread is stale");
  return ok();
}
