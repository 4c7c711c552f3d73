// As under a shell: a job in the foreground of the terminal, one in the background, and the leader
// of the session, which waits.
#include <termios.h>

#include "family.h"
using namespace tracee;

namespace {

void check_terminal(const char* who, pid_t session, pid_t foreground) {
  same(who, session, getsid(0));
  const int terminal = open("/dev/tty", O_RDWR | O_CLOEXEC);
  if (!check(terminal >= 0, "%s: /dev/tty: errno %d", who, errno)) return;
  same(who, session, tcgetsid(terminal));
  same(who, foreground, tcgetpgrp(terminal));
  close(terminal);
}

int foreground_job(pid_t session, pid_t background) {
  check_terminal("foreground", session, getpgrp());
  check(failures == 0, "set-up");
  ready();
  wait_moved();
  check_terminal("foreground", session, getpgrp());
  kill(background, SIGUSR1);
  return failures == 0 ? 0 : 1;
}

int background_job(pid_t session, pid_t foreground) {
  sigset_t wanted;
  sigemptyset(&wanted), sigaddset(&wanted, SIGUSR1);
  sigprocmask(SIG_BLOCK, &wanted, nullptr);
  siginfo_t info;
  while (sigwaitinfo(&wanted, &info) != SIGUSR1) {
  }
  check_terminal("background", session, foreground);
  // Reading is for the foreground.
  signal(SIGTTIN, SIG_IGN);
  char byte;
  same("read", -1, read(0, &byte, 1));
  same("errno", EIO, errno);
  return failures == 0 ? 0 : 1;
}

}  // namespace

int main() {
  if (getsid(0) != getpid()) skip("not the leader of a session");
  signal(SIGTTOU, SIG_IGN);
  int go[2];
  need(pipe(go) == 0, "pipe");
  const pid_t session = getpid(), foreground = fork();
  need(foreground >= 0, "fork");
  if (foreground == 0) {
    setpgid(0, 0);
    pid_t background = 0;
    need(read(go[0], &background, sizeof background) == sizeof background, "read");
    _exit(foreground_job(session, background));
  }
  const pid_t background = fork();
  need(background >= 0, "fork");
  if (background == 0) {
    setpgid(0, 0);
    _exit(background_job(session, foreground));
  }
  for (pid_t job : {foreground, background}) need(setpgid(job, job) == 0, "setpgid");
  need(tcsetpgrp(0, foreground) == 0, "tcsetpgrp");
  need(write(go[1], &background, sizeof background) == sizeof background, "write");
  int status = 0;
  // The one in the background is told by the other one; both look at the foreground's group.
  same("waitpid", background, waitpid(background, &status, 0));
  same("background", 0, status);
  same("waitpid", foreground, waitpid(foreground, &status, 0));
  same("foreground", 0, status);
  check(tcsetpgrp(0, getpgrp()) == 0, "tcsetpgrp: errno %d", errno);
  check_terminal("leader", session, getpgrp());
  return ok();
}
