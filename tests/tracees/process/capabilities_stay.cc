// All five capability sets and the securebits, reduced in different ways.
#include <linux/capability.h>
#include <linux/securebits.h>

#include "tracee.h"
using namespace tracee;

int main() {
  if (geteuid() != 0) skip("needs root");
  auto bit = [](int cap) { return 1u << cap; };
  need(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT) == 0 && prctl(PR_CAPBSET_DROP, CAP_MKNOD) == 0,
       "PR_CAPBSET_DROP");
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[2] = {};
  sets[0].permitted = bit(CAP_CHOWN) | bit(CAP_NET_RAW) | bit(CAP_SETPCAP) | bit(CAP_KILL);
  sets[0].effective = bit(CAP_CHOWN) | bit(CAP_SETPCAP);
  sets[0].inheritable = bit(CAP_CHOWN) | bit(CAP_NET_RAW);
  need(syscall(SYS_capset, &header, sets) == 0, "capset");
  need(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0) == 0, "PR_CAP_AMBIENT_RAISE");
  need(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_KEEP_CAPS) == 0, "PR_SET_SECUREBITS");
  const char* fields[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
  std::vector<std::string> before;
  for (const char* f : fields) before.push_back(status_field(f));
  ready();
  wait_moved();
  for (size_t i = 0; i < before.size(); ++i) same(fields[i], before[i], status_field(fields[i]));
  same("securebits", SECBIT_NOROOT | SECBIT_KEEP_CAPS, prctl(PR_GET_SECUREBITS));
  return ok();
}
