// System V semaphores: values, a thread in semop, one in semtimedop. Semaphores live in the
// capsule's IPC namespace, without any descriptor.
#include <sys/sem.h>

#include "calls.h"
using namespace tracee;

int main() {
  int id = semget(IPC_PRIVATE, 3, IPC_CREAT | 0600);
  need(id >= 0, "semget");
  need(semctl(id, 2, SETVAL, 17) == 0, "semctl");
  {
    sembuf down = {0, -1, 0}, never = {1, -1, 0};
    BlockedCall waiting("semop", SYS_semop, [=]() mutable -> long {
      return sys_result(syscall(SYS_semop, id, &down, 1));
    });
    TimedCall timed("semtimedop", SYS_semtimedop, -EAGAIN, [=](int64_t us) mutable -> long {
      timespec limit = timespec_of_us(us);
      return sys_result(semtimedop(id, &never, 1, &limit));
    });
    ready();
    wait_moved();
    waiting.check_still_blocked();
    timed.finish();
    sembuf up = {0, 1, 0};
    check(semop(id, &up, 1) == 0, "semop: errno %d", errno);
    waiting.check_returns(0);
  }
  same("value", 17, semctl(id, 2, GETVAL));
  semctl(id, 0, IPC_RMID);
  return ok();
}
