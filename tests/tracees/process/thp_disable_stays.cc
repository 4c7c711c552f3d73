// PR_SET_THP_DISABLE.
#include "tracee.h"
using namespace tracee;

int main() {
  need(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0, "PR_SET_THP_DISABLE");
  ready();
  wait_moved();
  same("THP_DISABLE", 1, prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
  return ok();
}
