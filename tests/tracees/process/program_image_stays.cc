// /proc/self/exe, cmdline, environ, auxv and the layout fields of stat; arguments overwritten as
// daemons do.
#include <sys/auxv.h>

#include "tracee.h"
using namespace tracee;

int main(int argc, char** argv) {
  auto link = [] {
    char target[1024] = {};
    need(readlink("/proc/self/exe", target, sizeof target - 1) > 0, "readlink");
    return std::string(target);
  };
  need(argc > 0 && strlen(argv[0]) > 4, "arguments");
  memcpy(argv[0], "ARGS", 4);
  setenv("TRACEE_ADDED", "value", 1);
  std::string exe = link(), cmdline = read_file("/proc/self/cmdline"),
              environ_ = read_file("/proc/self/environ"), auxv = read_file("/proc/self/auxv");
  // start_code, end_code, start_stack, start_data ... env_end: fields 26 to 28 and 45 to 51.
  auto layout = [] {
    std::string stat = read_file("/proc/self/stat"), result;
    size_t at = stat.rfind(')') + 2;
    for (int field = 3; at < stat.size(); ++field) {
      size_t end = stat.find_first_of(" \n", at);
      if ((field >= 26 && field <= 28) || (field >= 45 && field <= 51))
        result += stat.substr(at, end - at) + " ";
      at = end + 1;
    }
    return result;
  };
  std::string before = layout();
  need(cmdline.substr(0, 4) == "ARGS" && !auxv.empty(), "cmdline and auxv");
  ready();
  wait_moved();
  same("exe", exe, link());
  same("cmdline", cmdline, read_file("/proc/self/cmdline"));
  check(environ_ == read_file("/proc/self/environ"), "environ changed");
  check(auxv == read_file("/proc/self/auxv"), "auxv changed");
  same("layout in stat", before, layout());
  same("environment variable", "value",
       getenv("TRACEE_ADDED") != nullptr ? getenv("TRACEE_ADDED") : "");
  same("AT_PAGESZ", page_size, getauxval(AT_PAGESZ));
  int fd = open("/proc/self/exe", O_RDONLY);
  char magic[4] = {};
  check(fd >= 0 && read(fd, magic, 4) == 4 && memcmp(magic, "\177ELF", 4) == 0,
        "/proc/self/exe can't be read: errno %d", errno);
  return ok();
}
