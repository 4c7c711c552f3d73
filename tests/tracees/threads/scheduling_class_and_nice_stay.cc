// Per thread: SCHED_BATCH, SCHED_IDLE and nice values; as root SCHED_FIFO and SCHED_RR too.
#include <sched.h>
#include <sys/resource.h>

#include "tracee.h"
using namespace tracee;

struct Wanted {
  int policy, priority, nice;
};

int main() {
  std::vector<Wanted> wanted = {
      {SCHED_OTHER, 0, 0}, {SCHED_BATCH, 0, 5}, {SCHED_IDLE, 0, 3}, {SCHED_OTHER, 0, 11}};
  sched_param probe = {.sched_priority = 1};
  if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &probe) == 0) {
    sched_param none = {};
    need(sched_setscheduler(0, SCHED_OTHER, &none) == 0, "SCHED_OTHER");
    wanted.push_back({SCHED_FIFO, 7, 0});
    wanted.push_back({SCHED_RR | SCHED_RESET_ON_FORK, 3, 0});
    wanted.push_back({SCHED_OTHER, 0, -7});
  }
  std::vector<std::thread> threads;
  std::atomic<bool> stop{false};
  std::atomic<size_t> set{0};
  for (const Wanted& w : wanted) {
    threads.emplace_back([&] {
      sched_param parameter = {.sched_priority = w.priority};
      need(sched_setscheduler(0, w.policy, &parameter) == 0, "sched_setscheduler(%d)", w.policy);
      need(setpriority(PRIO_PROCESS, static_cast<id_t>(gettid_now()), w.nice) == 0,
           "setpriority(%d)", w.nice);
      ++set;
      while (!stop) usleep(1000);
      same("policy", w.policy, sched_getscheduler(0));
      check(sched_getparam(0, &parameter) == 0, "sched_getparam: errno %d", errno);
      same("priority", w.priority, parameter.sched_priority);
      same("nice", w.nice, getpriority(PRIO_PROCESS, static_cast<id_t>(gettid_now())));
    });
  }
  need(eventually([&] { return set == wanted.size(); }), "threads");
  ready();
  wait_moved();
  stop = true;
  for (auto& t : threads) t.join();
  return ok();
}
