// Children, grandchildren, sessions and process groups, and what each has in its memory.
#include "family.h"
using namespace tracee;

int main() {
  Relative child, sibling;
  Relative group_leader([] { need(setpgid(0, 0) == 0, "setpgid"); });
  Relative group_member([&] { need(setpgid(0, group_leader.pid()) == 0, "setpgid"); });
  Relative session_leader([] { need(setsid() > 0, "setsid"); });
  // Of a grandchild we know the number only.
  int there[2];
  need(pipe(there) == 0, "pipe");
  Relative parent([&] {
    need(setpgid(0, 0) == 0, "setpgid");
    auto* own = new Relative([] { need(setsid() > 0, "setsid"); });
    const pid_t pid = own->pid();
    need(write(there[1], &pid, sizeof pid) == sizeof pid, "write");
  });
  pid_t grandchild_pid = 0;
  need(read(there[0], &grandchild_pid, sizeof grandchild_pid) == sizeof grandchild_pid, "read");
  ready();
  wait_moved();
  child.check_same("child"), sibling.check_same("sibling");
  group_leader.check_same("leader of a group"), group_member.check_same("member of a group");
  session_leader.check_same("leader of a session"), parent.check_same("parent");
  const std::string stat = read_file("/proc/" + std::to_string(grandchild_pid) + "/stat");
  int parent_now = 0, group_now = 0, session_now = 0;
  const char* after_name = strrchr(stat.c_str(), ')');
  check(after_name != nullptr &&
            sscanf(after_name + 2, "%*c %d %d %d", &parent_now, &group_now, &session_now) == 3,
        "stat of the grandchild: %s", stat.c_str());
  same("parent of the grandchild", parent.pid(), parent_now);
  same("group of the grandchild", grandchild_pid, group_now);
  same("session of the grandchild", grandchild_pid, session_now);
  return ok();
}
