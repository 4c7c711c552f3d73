// Moved while inside a signal handler: sigreturn afterwards brings back registers, vector state and
// mask.
#include <ucontext.h>

#include "tracee.h"
using namespace tracee;

std::atomic<int> inside{0};
std::atomic<bool> leave{false};

void handler(int, siginfo_t*, void*) {
  ++inside;
  while (!leave) usleep(1000);
}

int main() {
  struct sigaction action = {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO;
  sigaddset(&action.sa_mask, SIGUSR2);
  need(sigaction(SIGUSR1, &action, nullptr) == 0, "sigaction");
  std::atomic<pid_t> tid{0};
  std::atomic<uint64_t> wrong{0};
  std::thread thread([&] {
    tid = gettid_now();
    alignas(16) uint64_t in[2] = {mix(1), mix(2)}, out[2] = {};
    uint64_t r12 = 0;
    // The signal comes while this loop runs: its frame holds these registers.
    asm volatile(
        "movaps %[in], %%xmm7\n mov $0x1234567, %%r12\n"
        "1: cmpb $0, %[leave]\n je 1b\n"
        "movaps %%xmm7, %[out]\n mov %%r12, %[r12]\n"
        : [out] "=m"(out), [r12] "=m"(r12)
        : [in] "m"(in), [leave] "m"(leave)
        : "xmm7", "r12", "memory", "cc");
    wrong += in[0] != out[0] || in[1] != out[1] || r12 != 0x1234567;
    sigset_t mask;
    pthread_sigmask(SIG_BLOCK, nullptr, &mask);
    wrong += sigismember(&mask, SIGUSR2) || sigismember(&mask, SIGUSR1);
  });
  need(eventually([&] { return tid != 0; }), "thread");
  need(syscall(SYS_tgkill, getpid(), tid.load(), SIGUSR1) == 0 &&
           eventually([&] { return inside == 1; }),
       "signal");
  ready();
  wait_moved();
  same("handlers that run", 1, inside.load());
  leave = true;
  thread.join();
  same("registers or masks that sigreturn got wrong", 0, wrong.load());
  return ok();
}
