// Children that signals have stopped: they stand, their parent is told of each stop as often as it
// would have been, and SIGCONT lets them go on.
#include "family.h"
using namespace tracee;

namespace {

struct Child {
  pid_t pid;
  int signal;
  bool waited_for;  // Before the move.
  std::atomic<uint64_t>* count;
};

char state_of(pid_t pid) {
  const std::string stat = read_file("/proc/" + std::to_string(pid) + "/stat");
  const size_t at = stat.rfind(')');
  return at == std::string::npos ? '?' : stat[at + 2];
}

}  // namespace

int main() {
  count_sigchld();
  auto* counts = reinterpret_cast<std::atomic<uint64_t>*>(
      map(page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS));
  std::vector<Child> children = {{0, SIGSTOP, true, &counts[0]},
                                 {0, SIGSTOP, false, &counts[8]},
                                 {0, SIGTSTP, true, &counts[16]},
                                 {0, SIGTTIN, false, &counts[24]}};
  for (Child& child : children) {
    child.pid = fork();
    need(child.pid >= 0, "fork");
    if (child.pid == 0) {
      need(setpgid(0, 0) == 0, "setpgid");  // SIGTSTP doesn't stop an orphaned group.
      // Two threads, one in a system call.
      Background other([&](std::atomic<bool>&) {
        for (;;) pause();
      });
      for (;;) {
        ++*child.count;
        usleep(100);
      }
    }
    need(eventually([&] { return *child.count > 0; }), "a child");
    need(kill(child.pid, child.signal) == 0, "kill");
    siginfo_t info = {};
    const int how = WSTOPPED | (child.waited_for ? 0 : WNOWAIT);
    need(waitid(P_PID, static_cast<id_t>(child.pid), &info, how) == 0, "waitid");
    need(info.si_code == CLD_STOPPED && info.si_status == child.signal, "it isn't stopped");
  }
  need(eventually([&] { return sigchld_count > 0; }), "SIGCHLD");
  const int before = sigchld_count;
  std::vector<uint64_t> stood_at;
  for (Child& child : children) stood_at.push_back(*child.count);
  ready();
  wait_moved();
  same("SIGCHLD", before, sigchld_count.load());
  for (size_t i = 0; i < children.size(); ++i) {
    const Child& child = children[i];
    same("state", 'T', state_of(child.pid));
    same("count", stood_at[i], child.count->load());
    siginfo_t info = {};
    const int how = WSTOPPED | WNOHANG;
    same("waitid", 0, waitid(P_PID, static_cast<id_t>(child.pid), &info, how));
    same("told of the stop", child.waited_for ? 0 : child.pid, info.si_pid);
    if (!child.waited_for) same("signal", child.signal, info.si_status);
    check(kill(child.pid, SIGCONT) == 0, "kill: errno %d", errno);
    check(eventually([&] { return *child.count > stood_at[i]; }), "it doesn't go on");
    kill(child.pid, SIGKILL);
    same("waitpid", child.pid, waitpid(child.pid, nullptr, 0));
  }
  return ok();
}
