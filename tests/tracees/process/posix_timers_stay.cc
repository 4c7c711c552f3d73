// timer_create of each clock and each kind of notification: ids, values, intervals, signals.
#include "tracee.h"
using namespace tracee;

// By the system calls: glibc hides the kernel's timer ids.
int create(clockid_t clock, int notify, int signal, int value, pid_t tid = 0) {
  struct sigevent event = {};
  event.sigev_notify = notify;
  event.sigev_signo = signal;
  event.sigev_value.sival_int = value;
  event._sigev_un._tid = tid;
  int id = -1;
  need(syscall(SYS_timer_create, clock, &event, &id) == 0, "timer_create(%d)", clock);
  return id;
}

void arm(int id, long first_s, long interval_s) {
  itimerspec spec = {{interval_s, 0}, {first_s, 0}};
  need(syscall(SYS_timer_settime, id, 0, &spec, nullptr) == 0, "timer_settime");
}

int main() {
  sigset_t set;
  sigemptyset(&set);
  for (int s = SIGRTMIN; s <= SIGRTMIN + 8; ++s) sigaddset(&set, s);
  need(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0, "pthread_sigmask");

  int unused = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0);  // A gap in the ids.
  int monotonic = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN, 100);
  need(syscall(SYS_timer_delete, unused) == 0, "timer_delete");
  int boottime = create(CLOCK_BOOTTIME, SIGEV_SIGNAL, SIGRTMIN + 1, 101);
  int realtime = create(CLOCK_REALTIME, SIGEV_THREAD_ID, SIGRTMIN + 2, 102, gettid_now());
  int none = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 103);
  int idle = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 3, 104);
  int cpu = create(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN + 4, 105);
  const int armed[] = {monotonic, boottime, realtime, none, cpu};
  int64_t start = now_us();
  for (int id : armed) arm(id, 5000, 77);
  ready();
  wait_moved();
  itimerspec now;
  for (int id : armed) {
    if (!check(syscall(SYS_timer_gettime, id, &now) == 0, "timer %d: errno %d", id, errno))
      continue;
    same("interval", 77L, now.it_interval.tv_sec);
    long passed_s = (now_us() - start) / 1'000'000;
    check(now.it_value.tv_sec >= 5000 - passed_s - 2 && now.it_value.tv_sec <= 5000,
          "timer %d has %ld s left of 5000 after %ld s", id, now.it_value.tv_sec, passed_s);
  }
  check(syscall(SYS_timer_gettime, idle, &now) == 0 && now.it_value.tv_sec == 0 &&
            now.it_value.tv_nsec == 0,
        "the idle timer is armed");
  check(syscall(SYS_timer_gettime, unused, &now) == -1 && errno == EINVAL,
        "the deleted timer is there");
  // They fire with their signal and value.
  const int signals[] = {SIGRTMIN, SIGRTMIN + 1, SIGRTMIN + 2};
  for (int i = 0; i < 3; ++i) {
    itimerspec soon = {{0, 0}, {0, 1'000'000}};
    check(syscall(SYS_timer_settime, armed[i], 0, &soon, nullptr) == 0, "timer_settime: errno %d",
          errno);
    siginfo_t info = {};
    timespec limit = {30, 0};
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, signals[i]);
    same("signal", signals[i], sigtimedwait(&one, &info, &limit));
    same("value", 100 + i, info.si_value.sival_int);
    same("code", SI_TIMER, info.si_code);
    same("timer in siginfo", armed[i], info.si_timerid);
  }
  return ok();
}
