// PR_SET_SPECULATION_CTRL, where the processor lets a thread choose.
#include "tracee.h"
using namespace tracee;

int main() {
  std::vector<std::pair<unsigned long, int>> set;
  for (unsigned long what : {PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH}) {
    if (prctl(PR_SET_SPECULATION_CTRL, what, PR_SPEC_DISABLE, 0, 0) != 0) continue;
    set.emplace_back(what, prctl(PR_GET_SPECULATION_CTRL, what, 0, 0, 0));
  }
  if (set.empty()) skip("this machine doesn't let programs control speculation");
  ready();
  wait_moved();
  for (auto [what, value] : set)
    same("speculation control", value, prctl(PR_GET_SPECULATION_CTRL, what, 0, 0, 0));
  return ok();
}
