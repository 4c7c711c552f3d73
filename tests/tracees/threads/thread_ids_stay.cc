// Thread ids, as gettid tells them, as /proc lists them and as the threads remember them.
#include <dirent.h>

#include <set>

#include "tracee.h"
using namespace tracee;

std::set<pid_t> listed() {
  std::set<pid_t> ids;
  DIR* dir = opendir("/proc/self/task");
  need(dir != nullptr, "opendir(/proc/self/task)");
  while (dirent* entry = readdir(dir))
    if (entry->d_name[0] != '.') ids.insert(atoi(entry->d_name));
  closedir(dir);
  return ids;
}

int main() {
  constexpr int threads_count = 12;
  pid_t process = getpid();
  std::set<pid_t> expected = {process};
  {
    std::atomic<pid_t> ids[threads_count] = {};
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (auto& id : ids) {
      threads.emplace_back([&] {
        id = gettid_now();
        while (!stop) {
          if (!same("gettid", id.load(), gettid_now()) ||
              !same("getpid", process, static_cast<pid_t>(syscall(SYS_getpid))))
            return;
          usleep(200);
        }
      });
      // Gaps in the numbering: a short-lived thread between two that stay.
      std::thread([] {}).join();
    }
    for (auto& id : ids) {
      need(eventually([&] { return id != 0; }), "thread");
      expected.insert(id);
    }
    need(eventually([&] { return listed() == expected; }), "task list");
    ready();
    wait_moved();
    check(listed() == expected, "the list of threads changed");
    for (auto& id : ids)
      check(syscall(SYS_tgkill, process, id.load(), 0) == 0, "no thread %d: errno %d", id.load(),
            errno);
    stop = true;
    for (auto& t : threads) t.join();
  }
  same("main thread", process, gettid_now());
  return ok();
}
