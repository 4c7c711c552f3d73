// What madvise leaves behind in an area's flags, looked up in /proc/self/smaps.
#include "tracee.h"
using namespace tracee;

struct Advice {
  const char* name;
  int advice;
  const char* flag;
};

int main() {
  const Advice advices[] = {
      {"DONTFORK", MADV_DONTFORK, "dc"},     {"DONTDUMP", MADV_DONTDUMP, "dd"},
      {"SEQUENTIAL", MADV_SEQUENTIAL, "sr"}, {"RANDOM", MADV_RANDOM, "rr"},
      {"HUGEPAGE", MADV_HUGEPAGE, "hg"},     {"NOHUGEPAGE", MADV_NOHUGEPAGE, "nh"},
      {"WIPEONFORK", MADV_WIPEONFORK, "wf"}, {"MERGEABLE", MADV_MERGEABLE, "mg"}};
  constexpr size_t bytes = 64 * KiB;
  std::vector<std::pair<const Advice*, uint8_t*>> areas;
  for (const Advice& a : advices) {
    uint8_t* p = map(bytes);
    fill(p, bytes, a.advice);
    if (madvise(p, bytes, a.advice) != 0) continue;  // Not in this kernel.
    need(has_vm_flag(p, a.flag), "MADV_%s doesn't show as %s", a.name, a.flag);
    areas.push_back({&a, p});
  }
  uint8_t* both = map(bytes);
  need(madvise(both, bytes, MADV_DONTFORK) == 0 && madvise(both, bytes, MADV_DONTDUMP) == 0,
       "two at once");
  uint8_t* plain = map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  ready();
  wait_moved();
  for (auto& [advice, p] : areas) {
    check(has_vm_flag(p, advice->flag), "MADV_%s is forgotten: %s", advice->name,
          proc_field(smaps_of(p), "VmFlags").c_str());
    check_filled(advice->name, p, bytes, advice->advice);
  }
  check(has_vm_flag(both, "dc") && has_vm_flag(both, "dd"), "one of two is forgotten");
  check(has_vm_flag(plain, "nr"), "MAP_NORESERVE is forgotten");
  for (const char* flag : {"dc", "dd", "sr", "rr", "wf", "uw", "um", "io"})
    check(!has_vm_flag(plain, flag), "flag %s appeared on a plain area", flag);
  return ok();
}
