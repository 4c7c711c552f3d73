// Per-processor counters by restartable sequences, in a loop: a thread that is moved inside a
// critical section must come out at its abort handler, else counts are lost.
#include <sched.h>
#include <sys/rseq.h>

#include "tracee.h"
using namespace tracee;

constexpr int cpus_max = 1024;
struct alignas(64) Counter {
  volatile uint64_t value;
};
Counter counters[cpus_max];

// Adds one to the counter of the processor we are on; false when aborted.
[[gnu::noinline]] bool add_one() {
  auto* area = reinterpret_cast<struct rseq*>(static_cast<char*>(__builtin_thread_pointer()) +
                                              __rseq_offset);
  uint32_t cpu = *const_cast<volatile uint32_t*>(&area->cpu_id_start);
  if (cpu >= cpus_max) return false;
  volatile uint64_t* counter = &counters[cpu].value;
  asm goto(
      ".pushsection __rseq_cs, \"aw\"\n"
      ".balign 32\n"
      "3: .long 0, 0\n"
      ".quad 1f, 2f - 1f, 4f\n"
      ".popsection\n"
      "lea 3b(%%rip), %%rax\n"
      "mov %%rax, %[cs]\n"
      "1: cmp %[cpu], %[cpu_id]\n"
      "jnz %l[aborted]\n"
      "mov (%[counter]), %%rax\n"
      ".rept 100\n pause\n .endr\n"  // Long enough for being stopped here to be likely.
      "inc %%rax\n"
      "mov %%rax, (%[counter])\n"  // Commit.
      "2: jmp 5f\n"
      ".byte 0x0f, 0xb9, 0x3d\n"  // ud1 with the signature, before the abort handler.
      ".long 0x53053053\n"
      "4: jmp %l[aborted]\n"
      "5:\n"
      :
      : [cs] "m"(area->rseq_cs), [cpu] "r"(cpu), [cpu_id] "m"(area->cpu_id), [counter] "r"(counter)
      : "memory", "cc", "rax"
      : aborted);
  return true;
aborted:
  return false;
}

int main() {
  if (__rseq_size == 0) skip("rseq isn't registered by this libc and kernel");
  std::atomic<uint64_t> done{0};
  {
    auto count = [&](std::atomic<bool>& stop) {
      uint64_t own = 0;
      while (!stop) own += add_one() ? 1 : 0;
      done += own;
    };
    Background a(count), b(count), c(count), d(count);
    ready();
    wait_moved();
  }
  uint64_t sum = 0;
  for (Counter& c : counters) sum += c.value;
  check(done > 0, "nothing was counted");
  same("sum of the processors' counters", done.load(), sum);
  return ok();
}
