// The ids and groups that the program was started with, as any user.
#include "tracee.h"
using namespace tracee;

int main() {
  const char* fields[] = {"Uid",    "Gid",    "Groups", "CapInh",     "CapPrm",
                          "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"};
  std::vector<std::string> before;
  for (const char* f : fields) before.push_back(status_field(f));
  ready();
  wait_moved();
  for (size_t i = 0; i < before.size(); ++i) same(fields[i], before[i], status_field(fields[i]));
  return ok();
}
