// A protection key: allocated, assigned to an area, with rights per thread.
#include "tracee.h"
using namespace tracee;

int main() {
  int key = pkey_alloc(0, 0);
  if (key < 0) skip("no protection keys: errno %d", errno);
  uint8_t* p = map(page_size);
  fill(p, page_size, 12);
  need(pkey_mprotect(p, page_size, PROT_READ | PROT_WRITE, key) == 0, "pkey_mprotect");
  need(pkey_set(key, PKEY_DISABLE_WRITE) == 0, "pkey_set");
  long shown = smaps_kb(p, "ProtectionKey");
  ready();
  wait_moved();
  same("key of the area", shown, smaps_kb(p, "ProtectionKey"));
  same("rights", PKEY_DISABLE_WRITE, pkey_get(key));
  check_filled("data", p, page_size, 12);
  check(pkey_free(key) == 0, "the key isn't allocated any more: errno %d", errno);
  return ok();
}
