// PR_SET_NO_NEW_PRIVS.
#include "tracee.h"
using namespace tracee;

int main() {
  need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
  ready();
  wait_moved();
  same("no_new_privs", 1, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
  return ok();
}
