// Names are bytes to the kernel: those of threads, files, directories, links, arguments and the
// environment, none of them UTF-8 here.
#include "tracee.h"
using namespace tracee;

namespace {

constexpr char latin[] = "caf\xe9";
constexpr char odd[] = "\xff\xfe";

void start_again(char** argv) {
  std::string environment = std::string("ODD=") + odd;
  std::string scratch = "TMPDIR=" + std::string(getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
  char* arguments[] = {argv[0], const_cast<char*>(latin), nullptr};
  char* variables[] = {environment.data(), scratch.data(), nullptr};
  execve("/proc/self/exe", arguments, variables);
  need(false, "execve");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) start_again(argv);
  Scratch scratch;
  need(prctl(PR_SET_NAME, odd) == 0, "PR_SET_NAME");
  std::string directory = scratch.path(odd);
  need(mkdir(directory.c_str(), 0755) == 0, "mkdir");
  need(chdir(directory.c_str()) == 0, "chdir");
  write_file(latin, "content");
  need(symlink(latin, odd) == 0, "symlink");
  int fd = open(latin, O_RDONLY);
  need(fd >= 0, "open");
  auto* mapped = static_cast<char*>(mmap(nullptr, page_size, PROT_READ, MAP_PRIVATE, fd, 0));
  need(mapped != MAP_FAILED, "mmap");
  ready();
  wait_moved();
  char name[17] = {};
  check(prctl(PR_GET_NAME, name) == 0, "PR_GET_NAME: errno %d", errno);
  same("name of the thread", std::string(odd), std::string(name));
  same("argument", std::string(latin), std::string(argv[1]));
  same("environment", std::string(odd), std::string(getenv("ODD") ? getenv("ODD") : ""));
  char text[8] = {};
  check(read(fd, text, 7) == 7, "read: errno %d", errno);
  same("content", std::string("content"), std::string(text));
  same("mapped content", std::string("content"), std::string(mapped, 7));
  same("content by name and link", std::string("content"), read_file(odd));
  char link[16] = {};
  check(readlink(odd, link, sizeof link - 1) > 0, "readlink: errno %d", errno);
  same("link", std::string(latin), std::string(link));
  return ok();
}
