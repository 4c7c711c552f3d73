// MAP_HUGETLB needs a pool of huge pages on both nodes.
#include "tracee.h"
using namespace tracee;

int main() {
  void* p = mmap(nullptr, 2 * MiB, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  if (p == MAP_FAILED) skip("no pool of huge pages: errno %d", errno);
  fill(p, 2 * MiB, 1);
  ready();
  wait_moved();
  check_filled("huge page", p, 2 * MiB, 1);
  check(has_vm_flag(p, "ht"), "not hugetlb any more");
  return ok();
}
