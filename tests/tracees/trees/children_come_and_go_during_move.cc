// Children that are forked, execute something else and end all the while, each with the status that
// it should end with; and some that live longer and look at their memory.
#include <spawn.h>

#include "family.h"
using namespace tracee;

extern char** environ;

namespace {

constexpr int at_once = 4;

pid_t fork_one(int number) {
  const pid_t pid = fork();
  need(pid >= 0, "fork");
  if (pid != 0) return pid;
  constexpr size_t bytes = 64 * KiB;
  auto* memory = map(bytes);
  fill(memory, bytes, static_cast<uint64_t>(number));
  usleep(static_cast<useconds_t>(number % 40) * 1'000);
  if (!check_filled("a child's memory", memory, bytes, static_cast<uint64_t>(number))) _exit(99);
  _exit(number % 64);
}

// The shell forks and executes once more.
pid_t spawn_one(int number) {
  const std::string script = "/bin/true; exit " + std::to_string(number % 64);
  const char* const argv[] = {"sh", "-c", script.c_str(), nullptr};
  pid_t pid = 0;
  need(posix_spawn(&pid, "/bin/sh", nullptr, nullptr, const_cast<char**>(argv), environ) == 0,
       "posix_spawn");
  return pid;
}

}  // namespace

int main() {
  std::map<pid_t, int> expected;
  int number = 0;
  auto one_more = [&] {
    const pid_t pid = number % 3 == 0 ? spawn_one(number) : fork_one(number);
    expected[pid] = number++ % 64;
  };
  auto reap_one = [&] {
    int status = 0;
    const pid_t pid = wait(&status);
    check(expected.contains(pid), "wait gave %d, errno %d", pid, errno);
    check(WIFEXITED(status) && WEXITSTATUS(status) == expected[pid],
          "child %d: status 0x%x, expected %d", pid, status, expected[pid]);
    expected.erase(pid);
  };
  for (int i = 0; i < at_once; ++i) one_more();
  ready();
  while (!moved() && failures == 0) reap_one(), one_more();
  while (!expected.empty()) reap_one();
  check(wait(nullptr) == -1 && errno == ECHILD, "there is a child that nobody started");
  return ok();
}
