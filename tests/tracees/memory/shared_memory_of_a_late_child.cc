// A child forked after the moves shares what is shared and copies what is private.
#include "tracee.h"
using namespace tracee;

int main() {
  uint8_t* shared = map(page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  uint8_t* own = map(page_size);
  shared[0] = own[0] = 'b';
  ready();
  wait_moved();
  pid_t child = fork();
  if (child == 0) {
    bool good = shared[0] == 'b' && own[0] == 'b';
    shared[0] = own[0] = 'c';
    _exit(good ? 0 : 1);
  }
  int status = -1;
  check(waitpid(child, &status, 0) == child && status == 0, "child: status 0x%x", status);
  same("shared", 'c', shared[0]);
  same("private", 'b', own[0]);
  return ok();
}
