// What lies in the private /tmp moves along though nobody has it open: files, directories, links,
// modes, times.
#include "tracee.h"
using namespace tracee;

int main() {
  Scratch scratch;
  need(mkdir(scratch.path("dir").c_str(), 0750) == 0 &&
           mkdir(scratch.path("dir/empty").c_str(), 0700) == 0,
       "mkdir");
  write_file(scratch.path("dir/file"), std::string(70'000, 'c'), 0640);
  write_file(scratch.path("dir/no bytes"), "");
  write_file(scratch.path("dir/odd \xc3\xa4\n name"), "odd");
  std::string link = scratch.path("link"), hard = scratch.path("hard"), fifo = scratch.path("fifo");
  need(symlink("dir/file", link.c_str()) == 0, "symlink");
  need(::link((scratch.dir() + "/dir/file").c_str(), hard.c_str()) == 0, "link");
  need(mkfifo(fifo.c_str(), 0620) == 0, "mkfifo");
  timespec times[2] = {{1'000'000'000, 0}, {1'234'567'890, 123'456'789}};
  need(utimensat(AT_FDCWD, hard.c_str(), times, 0) == 0, "utimensat");
  ready();
  wait_moved();
  std::string dir = scratch.dir();
  same("file", std::string(70'000, 'c'), read_file(dir + "/dir/file"));
  same("odd name", "odd", read_file(dir + "/dir/odd \xc3\xa4\n name"));
  char target[64] = {};
  check(readlink(link.c_str(), target, sizeof target - 1) > 0, "readlink: errno %d", errno);
  same("symbolic link", "dir/file", target);
  struct stat a = {}, b = {};
  check(stat(hard.c_str(), &a) == 0 && stat((dir + "/dir/file").c_str(), &b) == 0, "stat: errno %d",
        errno);
  check(a.st_ino == b.st_ino && a.st_nlink == 2, "the hard links are two files now");
  same("mode", 0640u & ~022u, b.st_mode & 0777 & ~022u);
  same("time of last change, s", times[1].tv_sec, b.st_mtim.tv_sec);
  same("and ns", times[1].tv_nsec, b.st_mtim.tv_nsec);
  check(stat((dir + "/dir/empty").c_str(), &a) == 0 && S_ISDIR(a.st_mode),
        "the empty directory is gone");
  same("its mode", 0700u, a.st_mode & 0777);
  check(stat((dir + "/dir/no bytes").c_str(), &a) == 0 && a.st_size == 0, "the empty file is gone");
  check(stat(fifo.c_str(), &a) == 0 && S_ISFIFO(a.st_mode), "the FIFO is gone");
  check(chmod(dir.c_str(), 0700) == 0, "chmod: errno %d", errno);
  return ok();
}
