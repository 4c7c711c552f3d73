// Children that ended in different ways and weren't waited for: each tells the same later, once,
// and no SIGCHLD comes for the move.
#include "family.h"
using namespace tracee;

namespace {

struct End {
  int code, status;  // As waitid(2) tells them.
};

pid_t child_that(int signal, int exit_code) {
  const pid_t pid = fork();
  need(pid >= 0, "fork");
  if (pid != 0) return pid;
  prctl(PR_SET_NAME, "ended");
  prctl(PR_SET_DUMPABLE, 0);
  if (signal != 0) {
    ::signal(signal, SIG_DFL);
    raise(signal);
  }
  _exit(exit_code);
}

}  // namespace

int main() {
  count_sigchld();
  const std::vector<std::pair<pid_t, End>> children = {
      {child_that(0, 0), {CLD_EXITED, 0}},
      {child_that(0, 255), {CLD_EXITED, 255}},
      {child_that(SIGKILL, 0), {CLD_KILLED, SIGKILL}},
      {child_that(SIGTERM, 0), {CLD_KILLED, SIGTERM}},
      {child_that(SIGRTMIN, 0), {CLD_KILLED, SIGRTMIN}},
      {child_that(SIGSEGV, 0), {CLD_KILLED, SIGSEGV}},
  };
  auto look = [&](pid_t pid, End end, int how) {
    siginfo_t info = {};
    same("waitid", 0, waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | how));
    same("si_pid", pid, info.si_pid);
    same("si_code", end.code, info.si_code);
    same("si_status", end.status, info.si_status);
    same("si_uid", getuid(), info.si_uid);
    const std::string stat = read_file("/proc/" + std::to_string(pid) + "/stat");
    if (how & WNOWAIT) check(stat.find("(ended) Z") != std::string::npos, "stat: %s", stat.c_str());
  };
  for (auto& [pid, end] : children) look(pid, end, WNOWAIT);
  need(failures == 0, "children");
  const int before = sigchld_count;
  ready();
  wait_moved();
  same("SIGCHLD", before, sigchld_count.load());
  for (auto& [pid, end] : children) look(pid, end, WNOWAIT);
  for (auto& [pid, end] : children) look(pid, end, 0);
  check(wait(nullptr) == -1 && errno == ECHILD, "more children than there were");
  return ok();
}
