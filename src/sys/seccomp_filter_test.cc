// The kernel itself is the reference: filters are installed in a child, calls are made, and what
// the kernel did is compared with what we say it would do.
#include "sys/seccomp_filter.h"

#include <gtest/gtest.h>
#include <linux/audit.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <random>

namespace godwit::sys {
namespace {

constexpr unsigned load = BPF_LD | BPF_W | BPF_ABS;
constexpr std::uint32_t arg0 = offsetof(seccomp_data, args);

seccomp_data call_of(int nr, std::uint64_t first = 0, std::uint64_t second = 0) {
  seccomp_data data{};
  data.nr = nr, data.arch = AUDIT_ARCH_X86_64;
  data.args[0] = first, data.args[1] = second;
  return data;
}

SeccompProgram program(std::vector<sock_filter> instructions) {
  return {std::move(instructions), 0};
}

TEST(SeccompFilter, TheMostSevereAnswerCounts) {
  const SeccompProgram allow = program({BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)});
  const SeccompProgram kill = program({BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)});
  const SeccompProgram trap = program({BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP)});
  const SeccompProgram first = program({BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1)});
  const SeccompProgram last = program({BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 2)});
  EXPECT_EQ(seccomp_verdict({}, call_of(1)), SECCOMP_RET_ALLOW);
  EXPECT_EQ(seccomp_verdict(std::vector{allow, trap, kill, first}, call_of(1)),
            SECCOMP_RET_KILL_PROCESS);
  EXPECT_EQ(seccomp_verdict(std::vector{first, trap, allow}, call_of(1)), SECCOMP_RET_TRAP);
  EXPECT_EQ(seccomp_verdict(std::vector{first, last}, call_of(1)), SECCOMP_RET_ERRNO | 2U);
}

TEST(SeccompFilter, WhatTheKernelWouldNotHaveTakenKills) {
  EXPECT_EQ(seccomp_verdict(std::vector{program({})}, call_of(1)), SECCOMP_RET_KILL_PROCESS);
  const SeccompProgram outside =
      program({BPF_STMT(load, sizeof(seccomp_data)), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)});
  EXPECT_EQ(seccomp_verdict(std::vector{outside}, call_of(1)), SECCOMP_RET_KILL_PROCESS);
}

// Every instruction, in programs that always end: whatever they compute from the arguments becomes
// the errno of getpriority(2).
std::vector<sock_filter> random_program(std::mt19937& random) {
  auto any = [&](std::uint32_t below) { return static_cast<std::uint32_t>(random() % below); };
  std::vector<sock_filter> p = {BPF_STMT(load, offsetof(seccomp_data, nr)),
                                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpriority, 1, 0),
                                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  for (std::uint32_t i = 0; i < 16; ++i) p.push_back(BPF_STMT(BPF_ST, i));
  constexpr unsigned ops[] = {BPF_ADD, BPF_SUB, BPF_MUL, BPF_DIV, BPF_AND,
                              BPF_OR,  BPF_XOR, BPF_LSH, BPF_RSH};
  constexpr unsigned tests[] = {BPF_JEQ, BPF_JGT, BPF_JGE, BPF_JSET};
  for (int i = 0; i < 60; ++i) {
    const unsigned source = any(2) != 0 ? BPF_X : BPF_K;
    const std::uint32_t k = any(4) != 0 ? 1 + any(31) : 1 + any(0xfffffffe);
    switch (any(9)) {
      case 0:
      case 1: {
        const unsigned op = ops[any(9)];
        const bool shift = op == BPF_LSH || op == BPF_RSH;
        if (shift && source == BPF_X) {  // Beyond 31 it is up to the processor.
          p.push_back(BPF_STMT(BPF_LDX | BPF_IMM, any(32)));
        }
        p.push_back(BPF_STMT(BPF_ALU | op | source, shift ? k & 31 : k));
        break;
      }
      case 2:
        p.push_back(BPF_STMT(BPF_ALU | BPF_NEG, 0));
        break;
      case 3:
        p.push_back(BPF_STMT(load, arg0 + 4 * any(4)));
        break;
      case 4:
        p.push_back(BPF_STMT((any(2) != 0 ? BPF_LD : BPF_LDX) | BPF_MEM, any(16)));
        break;
      case 5:
        p.push_back(BPF_STMT(any(2) != 0 ? BPF_ST : BPF_STX, any(16)));
        break;
      case 6:
        p.push_back(BPF_STMT(BPF_MISC | (any(2) != 0 ? BPF_TAX : BPF_TXA), 0));
        break;
      case 7:
        p.push_back(BPF_STMT((any(2) != 0 ? BPF_LD : BPF_LDX) | BPF_W | BPF_LEN, 0));
        break;
      default:
        p.push_back(BPF_JUMP(BPF_JMP | tests[any(4)] | source, k, static_cast<std::uint8_t>(any(3)),
                             static_cast<std::uint8_t>(any(3))));
    }
  }
  for (int i = 0; i < 2; ++i) p.push_back(BPF_STMT(BPF_MISC | BPF_TAX, 0));  // No jump goes beyond.
  p.push_back(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xfff));
  p.push_back(BPF_STMT(BPF_ALU | BPF_OR | BPF_K, SECCOMP_RET_ERRNO));
  for (int i = 0; i < 3; ++i) p.push_back(BPF_STMT(BPF_RET | BPF_A, 0));
  return p;
}

// How the kernel answers getpriority(first, second) under this program: errno (0: none), or -1 if
// it killed.
int kernel_answer(const std::vector<sock_filter>& instructions, std::uint64_t first,
                  std::uint64_t second) {
  void* shared = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* answer = static_cast<int*>(shared);
  *answer = -1;
  const pid_t child = ::fork();
  if (child == 0) {
    sock_fprog filter{static_cast<unsigned short>(instructions.size()),
                      const_cast<sock_filter*>(instructions.data())};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
      *answer = -2;
      ::_exit(1);
    }
    *answer = ::syscall(SYS_getpriority, first, second) < 0 ? errno : 0;
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  const int got = *answer;
  ::munmap(shared, 4096);
  return got;
}

TEST(SeccompFilter, SaysWhatTheKernelDoes) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  int killed = 0, different = 0;
  for (int i = 0; i < 200; ++i) {
    const std::vector<sock_filter> p = random_program(random);
    const std::uint64_t first = random() | std::uint64_t{random()} << 32, second = random() % 64;
    const int kernel = kernel_answer(p, first, second);
    ASSERT_NE(kernel, -2) << "not accepted: " << std::strerror(errno);
    const std::uint32_t ours =
        seccomp_verdict(std::vector{program(p)}, call_of(SYS_getpriority, first, second));
    killed += kernel == -1;
    if (kernel == -1) {
      ASSERT_EQ(ours, SECCOMP_RET_KILL_THREAD) << i;
    } else {
      ASSERT_EQ(ours, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(kernel)) << i;
    }
    different += kernel != 0;
  }
  EXPECT_GT(different, 50);
  std::printf("%d answers other than 0, %d killed\n", different, killed);
}

}  // namespace
}  // namespace godwit::sys
