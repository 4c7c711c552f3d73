// FS base: thread-local variables of 16 threads; GS base: set by arch_prctl, used by an
// instruction.
#include <asm/prctl.h>

#include "tracee.h"
using namespace tracee;

thread_local uint64_t own[64];

// Not inlined: each use takes the FS base anew.
[[gnu::noinline]] uint64_t* own_array() {
  asm volatile("");
  return own;
}

uint64_t load_gs(uint64_t offset) {
  uint64_t value;
  asm volatile("mov %%gs:(%1), %0" : "=r"(value) : "r"(offset));
  return value;
}

int main() {
  constexpr int threads_count = 16;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < threads_count; ++i) {
    threads.emplace_back([i, &stop] {
      uint64_t block[4] = {mix(i), mix(i + 1), 0, 0};
      need(syscall(SYS_arch_prctl, ARCH_SET_GS, block) == 0, "ARCH_SET_GS");
      fill(own_array(), sizeof own, i);
      unsigned long fs = 0, gs = 0;
      need(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs) == 0, "ARCH_GET_FS");
      while (!stop) {
        if (!same("word at gs:0", mix(i), load_gs(0)) ||
            !same("word at gs:8", mix(i + 1), load_gs(8)))
          return;
        if (!check_filled("thread-local array", own_array(), sizeof own, i)) return;
      }
      unsigned long fs_now = 0;
      check(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs_now) == 0 && fs_now == fs,
            "FS base was 0x%lx, is 0x%lx", fs, fs_now);
      check(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs) == 0, "ARCH_GET_GS");
      same("GS base", reinterpret_cast<unsigned long>(block), gs);
    });
  }
  ready();
  wait_moved();
  stop = true;
  for (auto& t : threads) t.join();
  return ok();
}
