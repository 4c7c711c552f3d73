// ioprio_set of the process and of one thread.
#include "tracee.h"
using namespace tracee;

constexpr int who_process = 1, class_best_effort = 2, class_idle = 3, class_shift = 13;

int main() {
  need(syscall(SYS_ioprio_set, who_process, 0, class_best_effort << class_shift | 6) == 0,
       "ioprio_set");
  std::atomic<int> phase{0};
  std::thread thread([&] {
    need(syscall(SYS_ioprio_set, who_process, 0, class_idle << class_shift) == 0, "ioprio_set");
    phase = 1;
    while (phase == 1) usleep(1000);
    same("priority of the thread", class_idle,
         static_cast<int>(syscall(SYS_ioprio_get, who_process, 0)) >> class_shift);
  });
  need(eventually([&] { return phase == 1; }), "thread");
  ready();
  wait_moved();
  same("priority of the main thread", class_best_effort << class_shift | 6,
       static_cast<int>(syscall(SYS_ioprio_get, who_process, 0)));
  phase = 2;
  thread.join();
  return ok();
}
