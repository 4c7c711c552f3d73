// Affinity per thread. Nodes may have other processors: what a thread asked for holds where it
// exists, and every thread can run somewhere.
#include <sched.h>

#include "tracee.h"
using namespace tracee;

int main() {
  cpu_set_t all;
  CPU_ZERO(&all);
  need(sched_getaffinity(0, sizeof all, &all) == 0, "sched_getaffinity");
  std::vector<std::thread> threads;
  std::atomic<bool> stop{false};
  std::atomic<int> set{0};
  int wanted = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE && wanted < 8; ++cpu) {
    if (!CPU_ISSET(cpu, &all)) continue;
    ++wanted;
    threads.emplace_back([&, cpu] {
      cpu_set_t own, now;
      CPU_ZERO(&own);
      CPU_SET(cpu, &own);
      need(sched_setaffinity(0, sizeof own, &own) == 0, "sched_setaffinity");
      ++set;
      while (!stop) usleep(1000);
      check(sched_getaffinity(0, sizeof now, &now) == 0, "sched_getaffinity: errno %d", errno);
      check(CPU_EQUAL(&own, &now), "affinity to processor %d is lost: %d processors", cpu,
            CPU_COUNT(&now));
      same("processor", cpu, sched_getcpu());
    });
  }
  need(eventually([&] { return set == wanted; }), "threads");
  ready();
  wait_moved();
  stop = true;
  for (auto& t : threads) t.join();
  cpu_set_t now;
  check(sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&all, &now),
        "affinity of the main thread changed");
  return ok();
}
