// pthread_join waits for the kernel to clear the thread id (clear_child_tid), of a thread that was
// moved and of one that waits in join while it is moved.
#include "tracee.h"
using namespace tracee;

int main() {
  std::atomic<bool> stop{false}, joined{false};
  std::atomic<int> ended{0};
  std::thread first([&] {
    while (!stop) usleep(1000);
    ++ended;
  });
  std::thread second([&] {
    while (!stop) usleep(1000);
    ++ended;
  });
  std::thread joiner([&] {
    second.join();
    joined = true;
  });
  ready();
  wait_moved();
  check(!joined, "pthread_join returned too early");
  stop = true;
  first.join();
  joiner.join();
  same("threads ended", 2, ended.load());
  return ok();
}
