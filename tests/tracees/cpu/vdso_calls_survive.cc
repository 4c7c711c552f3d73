// clock_gettime, time and getcpu of the vdso in a tight loop: stopped inside it, it goes on inside
// it, with the target's clock data.
#include <sched.h>
#include <sys/auxv.h>
#include <sys/time.h>

#include "tracee.h"
using namespace tracee;

int main() {
  unsigned long vdso = getauxval(AT_SYSINFO_EHDR);
  need(vdso != 0, "no vdso");
  auto run = [](std::atomic<bool>& stop) {
    timespec last = {}, now = {};
    while (!stop) {
      for (int i = 0; i < 1000; ++i) {
        if (!check(clock_gettime(CLOCK_MONOTONIC, &now) == 0, "clock_gettime: errno %d", errno))
          return;
        bool forward =
            now.tv_sec > last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec >= last.tv_nsec);
        if (!check(forward, "clock went back from %ld.%09ld to %ld.%09ld", last.tv_sec,
                   last.tv_nsec, now.tv_sec, now.tv_nsec))
          return;
        last = now;
      }
      timeval tv = {};
      unsigned cpu = ~0U;
      if (!check(gettimeofday(&tv, nullptr) == 0 && getcpu(&cpu, nullptr) == 0 && cpu < 4096,
                 "gettimeofday, getcpu"))
        return;
    }
    // The vdso and the system call tell the same time.
    timespec by_call = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &by_call);
    int64_t apart_ns =
        (by_call.tv_sec - now.tv_sec) * 1'000'000'000LL + by_call.tv_nsec - now.tv_nsec;
    check(apart_ns >= 0 && apart_ns < 1'000'000'000,
          "the kernel's clock is %lld ns ahead of the vdso's", static_cast<long long>(apart_ns));
  };
  Background a(run), b(run);
  ready();
  wait_moved();
  a.finish();
  b.finish();
  same("AT_SYSINFO_EHDR", vdso, getauxval(AT_SYSINFO_EHDR));
  check(memcmp(reinterpret_cast<void*>(vdso), "\177ELF", 4) == 0,
        "there is no vdso at its address");
  check(read_file("/proc/self/maps").find("[vdso]") != std::string::npos,
        "maps doesn't show [vdso]");
  check(read_file("/proc/self/maps").find("[vvar]") != std::string::npos,
        "maps doesn't show [vvar]");
  return ok();
}
