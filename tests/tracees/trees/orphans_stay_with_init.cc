// Daemons: forked twice, so init's children, in a session whose leader has ended or which they
// share with others.
#include "family.h"
using namespace tracee;

namespace {

// Runs `born` in a child that ends once it has forked the daemon, as daemon(3) does.
void leave_behind(int report, bool own_session) {
  const pid_t middle = fork();
  need(middle >= 0, "fork");
  if (middle > 0) {
    need(waitpid(middle, nullptr, 0) == middle, "waitpid");
    return;
  }
  if (own_session) need(setsid() > 0, "setsid");
  if (fork() != 0) _exit(0);
  while (getppid() != 1) usleep(1'000);
  char tick = '.';
  while (write(report, &tick, 1) == 1) usleep(2'000);
  _exit(0);
}

struct Seen {
  pid_t pid;
  int parent, group, session;
};

// All children of init that aren't us.
std::vector<Seen> adopted() {
  std::vector<Seen> all;
  for (pid_t pid = 2; pid < 5'000; ++pid) {
    if (pid == getpid()) continue;
    const std::string stat = read_file("/proc/" + std::to_string(pid) + "/stat");
    const char* after_name = strrchr(stat.c_str(), ')');
    Seen seen = {pid, 0, 0, 0};
    if (after_name == nullptr ||
        sscanf(after_name + 2, "%*c %d %d %d", &seen.parent, &seen.group, &seen.session) != 3)
      continue;
    if (seen.parent == 1) all.push_back(seen);
  }
  return all;
}

}  // namespace

int main() {
  if (getppid() != 1) skip("not in a capsule: orphans would be somebody else's");
  int ticks[2][2];
  for (auto& ends : ticks) need(pipe(ends) == 0, "pipe");
  leave_behind(ticks[0][1], true);
  leave_behind(ticks[1][1], false);
  for (auto& ends : ticks) close(ends[1]);
  char tick;
  for (auto& ends : ticks) need(read(ends[0], &tick, 1) == 1, "a daemon");
  const std::vector<Seen> before = adopted();
  same("daemons", 2, before.size());
  ready();
  // Else their pipes fill up; they go on while all is moved.
  while (!moved())
    for (auto& ends : ticks) check(read(ends[0], &tick, 1) == 1, "a daemon has ended");
  const std::vector<Seen> now = adopted();
  same("daemons", before.size(), now.size());
  for (size_t i = 0; i < now.size() && i < before.size(); ++i) {
    same("pid", before[i].pid, now[i].pid);
    same("group", before[i].group, now[i].group);
    same("session", before[i].session, now[i].session);
  }
  return ok();
}
