// Each thread has a signal mask of its own, real-time signals and numbers used by glibc included.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr int threads_count = 8;
  std::vector<std::thread> threads;
  std::atomic<bool> stop{false};
  std::atomic<int> set{0};
  for (int i = 0; i < threads_count; ++i) {
    threads.emplace_back([&, i] {
      // By the system call: glibc keeps 32 and 33 to itself. SIGKILL and SIGSTOP can't be blocked.
      uint64_t wanted = mix(i) & ~(1ULL << (SIGKILL - 1)) & ~(1ULL << (SIGSTOP - 1)), now = 0;
      need(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &wanted, nullptr, 8) == 0, "rt_sigprocmask");
      ++set;
      while (!stop) {
        need(syscall(SYS_rt_sigprocmask, SIG_BLOCK, nullptr, &now, 8) == 0, "rt_sigprocmask");
        if (!same("mask", wanted, now)) return;
        usleep(500);
      }
    });
  }
  need(eventually([&] { return set == threads_count; }), "threads");
  ready();
  wait_moved();
  stop = true;
  for (auto& t : threads) t.join();
  return ok();
}
