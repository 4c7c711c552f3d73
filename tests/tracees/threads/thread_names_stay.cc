// PR_SET_NAME of every thread, also with unusual characters.
#include "tracee.h"
using namespace tracee;

int main() {
  const std::string names[] = {"worker 1", "fifteen letters", "a) (b", "x"};
  std::vector<std::thread> threads;
  std::atomic<bool> stop{false};
  std::atomic<int> named{0};
  need(prctl(PR_SET_NAME, "main (renamed)") == 0, "PR_SET_NAME");
  for (const std::string& name : names) {
    threads.emplace_back([&] {
      need(prctl(PR_SET_NAME, name.c_str()) == 0, "PR_SET_NAME");
      ++named;
      while (!stop) usleep(1000);
      char now[16] = {};
      check(prctl(PR_GET_NAME, now) == 0, "PR_GET_NAME: errno %d", errno);
      same("name", name, now);
      same("comm", name + "\n", read_file("/proc/thread-self/comm"));
    });
  }
  need(eventually([&] { return named == 4; }), "threads");
  ready();
  wait_moved();
  stop = true;
  for (auto& t : threads) t.join();
  same("main thread's comm", "main (renamed)\n", read_file("/proc/self/comm"));
  return ok();
}
