// A key in the process' own keyring.
#include <linux/keyctl.h>

#include "tracee.h"
using namespace tracee;

int main() {
  long key = syscall(SYS_add_key, "user", "tracee", "secret", 6, KEY_SPEC_PROCESS_KEYRING);
  if (key < 0) skip("no keyrings: errno %d", errno);
  ready();
  wait_moved();
  char data[16] = {};
  check(
      syscall(SYS_keyctl, KEYCTL_READ, key, data, sizeof data) == 6 && strcmp(data, "secret") == 0,
      "the key is lost: errno %d", errno);
  return ok();
}
