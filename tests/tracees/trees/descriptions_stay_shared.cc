// One open file description in two processes has one offset and one set of flags; files that were
// opened twice don't.
#include "family.h"
using namespace tracee;

int main() {
  Scratch scratch;
  const std::string path = scratch.path("data");
  write_file(path, "0123456789abcdefghijklmnopqrstuvwxyz");
  const int shared = open(path.c_str(), O_RDONLY);
  need(shared >= 0, "open");
  int ask[2], answer[2];
  need(pipe(ask) == 0 && pipe(answer) == 0, "pipe");
  const pid_t child = fork();
  if (child == 0) {
    const int own = open(path.c_str(), O_RDONLY);
    lseek(own, 3, SEEK_SET);
    close(ask[1]);
    for (char question; read(ask[0], &question, 1) == 1;) {
      char got[2] = {};
      if (read(shared, &got[0], 1) != 1 || read(own, &got[1], 1) != 1) _exit(2);
      if (question == 'n') fcntl(shared, F_SETFL, O_NONBLOCK);
      if (write(answer[1], got, 2) != 2) _exit(3);
    }
    _exit(0);
  }
  auto child_reads = [&](char question, char expected_shared, char expected_own) {
    char got[2] = {};
    need(write(ask[1], &question, 1) == 1 && read(answer[0], got, 2) == 2, "child");
    same("the child read of the shared description", expected_shared, got[0]);
    same("the child read of its own", expected_own, got[1]);
  };
  auto we_read = [&](char expected) {
    char got = 0;
    check(read(shared, &got, 1) == 1, "read: errno %d", errno);
    same("we read", expected, got);
  };
  we_read('0');
  child_reads('?', '1', '3');
  ready();
  wait_moved();
  we_read('2');
  child_reads('n', '3', '4');
  we_read('4');
  check((fcntl(shared, F_GETFL) & O_NONBLOCK) != 0, "the child's O_NONBLOCK isn't ours");
  close(ask[1]);
  int status = 0;
  same("waitpid", child, waitpid(child, &status, 0));
  same("status", 0, status);
  return ok();
}
