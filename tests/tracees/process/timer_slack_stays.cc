// PR_SET_TIMERSLACK, per thread.
#include "tracee.h"
using namespace tracee;

int main() {
  need(prctl(PR_SET_TIMERSLACK, 123'456) == 0, "PR_SET_TIMERSLACK");
  std::atomic<int> phase{0};
  std::thread thread([&] {
    need(prctl(PR_SET_TIMERSLACK, 77'777) == 0, "PR_SET_TIMERSLACK");
    phase = 1;
    while (phase == 1) usleep(1000);
    same("timer slack of the thread, ns", 77'777, prctl(PR_GET_TIMERSLACK));
  });
  need(eventually([&] { return phase == 1; }), "thread");
  ready();
  wait_moved();
  same("timer slack, ns", 123'456, prctl(PR_GET_TIMERSLACK));
  phase = 2;
  thread.join();
  return ok();
}
