// The label that a security module (SELinux, AppArmor, Smack) gives to the process.
#include "tracee.h"
using namespace tracee;

int main() {
  std::string label = read_file("/proc/self/attr/current");
  if (label.empty()) skip("no security module labels processes here");
  ready();
  wait_moved();
  same("label", label, read_file("/proc/self/attr/current"));
  return ok();
}
