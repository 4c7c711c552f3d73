// A hundred processes, each the parent of the next where the number is a multiple of ten.
#include "family.h"
using namespace tracee;

int main() {
  constexpr int count = 100;
  std::vector<std::unique_ptr<Relative>> all;
  for (int i = 0; i < count; ++i)
    all.push_back(std::make_unique<Relative>([i] {
      if (i % 10 == 0) need(setpgid(0, 0) == 0, "setpgid");
      if (i % 25 == 0) need(setsid() > 0 || errno == EPERM, "setsid");
    }));
  ready();
  wait_moved();
  for (auto& one : all) one->check_same("one of a hundred");
  // The later ones have the pipes of the earlier ones: so from the end.
  while (!all.empty()) all.pop_back();
  return ok();
}
