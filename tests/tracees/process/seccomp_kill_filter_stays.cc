// A filter that kills at any system call but the few we make: nothing injected may run under it,
// and it must be there afterwards. Threads have filters of their own on top.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>

#include "tracee.h"
using namespace tracee;

void install(const std::vector<uint32_t>& allowed, uint32_t otherwise) {
  std::vector<sock_filter> code = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
  for (uint32_t nr : allowed) {
    code.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1));
    code.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  }
  code.push_back(BPF_STMT(BPF_RET | BPF_K, otherwise));
  sock_fprog program = {static_cast<unsigned short>(code.size()), code.data()};
  need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
  need(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0, "seccomp");
}

int main() {
  uint8_t* p = map(2 * MiB);
  fill(p, 2 * MiB, 3);
  // restart_syscall is how the kernel goes on with an interrupted sleep: programs with filters
  // allow it.
  std::vector<uint32_t> calls = {
      SYS_read,    SYS_write,           SYS_exit,           SYS_exit_group,   SYS_futex,
      SYS_getppid, SYS_clock_nanosleep, SYS_nanosleep,      SYS_rt_sigreturn, SYS_restart_syscall,
      SYS_munmap,  SYS_madvise,         SYS_rt_sigprocmask, SYS_poll};
  std::atomic<bool> stop{false}, installed{false};
  std::thread thread([&] {
    // Above the filter of all: getppid fails with EXDEV in this thread.
    std::vector<uint32_t> own = calls;
    std::erase(own, static_cast<uint32_t>(SYS_getppid));
    own.push_back(SYS_seccomp);
    install(own, SECCOMP_RET_ERRNO | EXDEV);
    installed = true;
    while (!stop) {
      if (!check(syscall(SYS_getppid) == -1 && errno == EXDEV, "the thread's own filter is gone"))
        break;
      usleep(200);
    }
  });
  need(eventually([&] { return installed.load(); }), "thread");
  install(calls, SECCOMP_RET_KILL_PROCESS);
  ready();
  while (!moved()) {
    check(syscall(SYS_getppid) >= 0, "getppid: errno %d", errno);
    usleep(200);
  }
  stop = true;
  thread.join();
  check_filled("memory", p, 2 * MiB, 3);
  // That it still kills can't be tried by one who wants to live: seccomp_filter_still_decides looks
  // at verdicts.
  return ok();
}
