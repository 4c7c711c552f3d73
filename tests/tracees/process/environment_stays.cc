// Environment and arguments: as the program was started with, and as it changed them since.
#include "tracee.h"
using namespace tracee;

extern char** environ;

int main(int argc, char** argv) {
  setenv("TRACEE_LONG", std::string(5000, 'e').c_str(), 1);
  setenv("TRACEE_UTF8", "\xc3\xa4\xe2\x82\xac = ; \"", 1);
  putenv(const_cast<char*>("TRACEE_PUT=put"));
  unsetenv("LC_ALL");
  std::vector<std::string> before, arguments(argv, argv + argc);
  for (char** e = environ; *e != nullptr; ++e) before.emplace_back(*e);
  ready();
  wait_moved();
  size_t i = 0;
  for (char** e = environ; *e != nullptr; ++e, ++i)
    if (check(i < before.size(), "new: %s", *e)) same("variable", before[i], *e);
  same("variables", before.size(), i);
  for (int k = 0; k < argc; ++k) same("argument", arguments[static_cast<size_t>(k)], argv[k]);
  for (const char* name : {"PATH", "HOME", "TMPDIR"}) {
    const char* value = getenv(name);
    std::string prefix = std::string(name) + "=";
    for (const std::string& variable : before)
      if (variable.compare(0, prefix.size(), prefix) == 0)
        same(name, variable.substr(prefix.size()), value != nullptr ? value : "(none)");
  }
  return ok();
}
