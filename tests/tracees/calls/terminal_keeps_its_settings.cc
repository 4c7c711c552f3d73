// stdin, stdout and stderr are a terminal: its modes, its size, our session and the foreground
// group stay.
#include <sys/ioctl.h>
#include <termios.h>

#include "tracee.h"
using namespace tracee;

int main() {
  if (!isatty(0) || !isatty(1)) skip("stdin isn't a terminal");
  termios before = {}, now = {};
  need(tcgetattr(0, &before) == 0, "tcgetattr");
  before.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  before.c_cc[VQUIT] = 7;
  need(tcsetattr(0, TCSANOW, &before) == 0, "tcsetattr");
  winsize size_before = {}, size = {};
  need(ioctl(0, TIOCGWINSZ, &size_before) == 0, "TIOCGWINSZ");
  pid_t session = getsid(0), foreground = tcgetpgrp(0);
  int tty = open("/dev/tty", O_RDWR | O_CLOEXEC);
  ready();
  wait_moved();
  check(tcgetattr(0, &now) == 0, "tcgetattr: errno %d", errno);
  same("c_lflag", before.c_lflag, now.c_lflag);
  same("c_iflag", before.c_iflag, now.c_iflag);
  same("c_oflag", before.c_oflag, now.c_oflag);
  same("VQUIT", before.c_cc[VQUIT], now.c_cc[VQUIT]);
  check(ioctl(0, TIOCGWINSZ, &size) == 0, "TIOCGWINSZ: errno %d", errno);
  same("rows", size_before.ws_row, size.ws_row);
  same("columns", size_before.ws_col, size.ws_col);
  same("session", session, getsid(0));
  same("foreground group", foreground, tcgetpgrp(0));
  if (tty >= 0) {
    check(isatty(tty), "/dev/tty isn't a terminal any more");
    int again = open("/dev/tty", O_RDWR | O_CLOEXEC);
    check(again >= 0, "/dev/tty can't be opened again: errno %d", errno);
  }
  return ok();
}
