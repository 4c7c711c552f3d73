// Signals queued to the process while all threads block them.
#include "tracee.h"
using namespace tracee;

int main() {
  sigset_t set;
  sigemptyset(&set);
  for (int s : {SIGTERM, SIGHUP, SIGRTMIN + 2, SIGRTMAX}) sigaddset(&set, s);
  need(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0, "pthread_sigmask");
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) usleep(1000);
  });
  constexpr int values_count = 100;
  for (int i = 0; i < values_count; ++i)
    need(sigqueue(getpid(), SIGRTMIN + 2, {.sival_int = i * 3}) == 0, "sigqueue");
  need(
      sigqueue(getpid(), SIGRTMAX, {.sival_ptr = reinterpret_cast<void*>(0x1234567890abcdef)}) == 0,
      "sigqueue");
  need(kill(getpid(), SIGTERM) == 0 && kill(getpid(), SIGHUP) == 0 && kill(getpid(), SIGHUP) == 0,
       "kill");
  ready();
  wait_moved();
  timespec none = {};
  siginfo_t info;
  same("SIGHUP", SIGHUP, sigtimedwait(&set, &info, &none));
  same("code of SIGHUP", SI_USER, info.si_code);
  same("SIGTERM", SIGTERM, sigtimedwait(&set, &info, &none));
  for (int i = 0; i < values_count; ++i) {
    if (!same("queued signal", SIGRTMIN + 2, sigtimedwait(&set, &info, &none))) break;
    if (!same("value", i * 3, info.si_value.sival_int)) break;
  }
  same("last signal", SIGRTMAX, sigtimedwait(&set, &info, &none));
  check(info.si_value.sival_ptr == reinterpret_cast<void*>(0x1234567890abcdef),
        "a pointer value is %p", info.si_value.sival_ptr);
  check(sigtimedwait(&set, &info, &none) == -1 && errno == EAGAIN, "one signal too many: %d",
        info.si_signo);
  stop = true;
  other.join();
  return ok();
}
