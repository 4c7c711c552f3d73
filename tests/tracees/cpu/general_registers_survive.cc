// Every general register and the flags hold a value of their own through a tight loop in user code;
// a stop at any instruction must give all of them back.
#include "tracee.h"
using namespace tracee;

std::atomic<uint32_t> stop_flag{0};

// Loops until stop_flag; returns how many registers ever differed. rsp is used as is (red zone
// untouched).
[[gnu::noinline]] uint64_t hold_registers(uint64_t seed) {
  uint64_t bad = 0;
  asm volatile(
      "push %%rbp\n"
      "mov %[seed], %%rax\n"
      "lea 1(%%rax), %%rbx\n lea 2(%%rax), %%rcx\n lea 3(%%rax), %%rdx\n lea 4(%%rax), %%rsi\n"
      "lea 6(%%rax), %%rbp\n lea 7(%%rax), %%r8\n lea 8(%%rax), %%r9\n lea 9(%%rax), %%r10\n"
      "lea 10(%%rax), %%r11\n lea 11(%%rax), %%r12\n lea 12(%%rax), %%r13\n lea 13(%%rax), %%r14\n"
      "1:\n"
      "stc\n"  // Carry must live across the moves too.
      "mov $1000, %%r15\n"
      "2: dec %%r15\n"  // dec leaves the carry alone.
      "jnz 2b\n"
      "jnc 9f\n"
      "lea 1(%%rax), %%r15\n cmp %%r15, %%rbx\n jne 9f\n"
      "lea 2(%%rax), %%r15\n cmp %%r15, %%rcx\n jne 9f\n"
      "lea 3(%%rax), %%r15\n cmp %%r15, %%rdx\n jne 9f\n"
      "lea 4(%%rax), %%r15\n cmp %%r15, %%rsi\n jne 9f\n"
      "lea 6(%%rax), %%r15\n cmp %%r15, %%rbp\n jne 9f\n"
      "lea 7(%%rax), %%r15\n cmp %%r15, %%r8\n jne 9f\n"
      "lea 8(%%rax), %%r15\n cmp %%r15, %%r9\n jne 9f\n"
      "lea 9(%%rax), %%r15\n cmp %%r15, %%r10\n jne 9f\n"
      "lea 10(%%rax), %%r15\n cmp %%r15, %%r11\n jne 9f\n"
      "lea 11(%%rax), %%r15\n cmp %%r15, %%r12\n jne 9f\n"
      "lea 12(%%rax), %%r15\n cmp %%r15, %%r13\n jne 9f\n"
      "lea 13(%%rax), %%r15\n cmp %%r15, %%r14\n jne 9f\n"
      "cmpl $0, (%%rdi)\n"
      "je 1b\n"
      "xor %%eax, %%eax\n"
      "jmp 10f\n"
      "9: mov $1, %%eax\n"
      "10: pop %%rbp\n"
      : "=&a"(bad)
      : [seed] "S"(seed), "D"(&stop_flag)
      : "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
  return bad;
}

int main() {
  std::atomic<uint64_t> bad{0};
  std::thread a([&] { bad += hold_registers(0x0123456789abcdef); });
  std::thread b([&] { bad += hold_registers(0xfedcba9876543210); });
  ready();
  wait_moved();
  stop_flag = 1;
  a.join();
  b.join();
  same("threads whose registers changed", 0, bad.load());
  return ok();
}
