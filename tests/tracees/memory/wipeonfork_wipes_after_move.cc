// MADV_WIPEONFORK and MADV_DONTFORK seen by a child forked after the move.
#include "tracee.h"
using namespace tracee;

int main() {
  uint8_t* wiped = map(page_size);
  uint8_t* absent = map(page_size);
  need(madvise(wiped, page_size, MADV_WIPEONFORK) == 0 &&
           madvise(absent, page_size, MADV_DONTFORK) == 0,
       "madvise");
  fill(wiped, page_size, 4);
  fill(absent, page_size, 5);
  ready();
  wait_moved();
  check_filled("area of the parent", wiped, page_size, 4);
  check_filled("area not for children", absent, page_size, 5);
  pid_t child = fork();
  if (child == 0) {
    for (size_t i = 0; i < page_size; ++i)
      if (wiped[i] != 0) _exit(1);
    unsigned char vec;
    _exit(mincore(absent, page_size, &vec) == -1 && errno == ENOMEM ? 0 : 2);
  }
  int status = 0;
  check(waitpid(child, &status, 0) == child, "waitpid: errno %d", errno);
  check(WIFEXITED(status) && WEXITSTATUS(status) == 0,
        "child: status 0x%x (1: not wiped, 2: not absent)", status);
  return ok();
}
