// A pipeline of three processes: numbers go in, doubled by the one in the middle, and are counted.
#include "family.h"
using namespace tracee;

namespace {

void write_all(int fd, const void* data, size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = write(fd, at, bytes);
    if (n < 0) _exit(errno == EPIPE ? 0 : 2);
    at += n, bytes -= static_cast<size_t>(n);
  }
}

bool read_all(int fd, void* data, size_t bytes) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = read(fd, at, bytes);
    if (n <= 0) return false;
    at += n, bytes -= static_cast<size_t>(n);
  }
  return true;
}

}  // namespace

int main() {
  signal(SIGPIPE, SIG_IGN);
  int first[2], second[2];
  need(pipe(first) == 0 && pipe(second) == 0, "pipe");
  if (fork() == 0) {
    close(first[0]), close(second[0]), close(second[1]);
    for (uint64_t number = 0;; ++number) write_all(first[1], &number, sizeof number);
  }
  if (fork() == 0) {
    close(first[1]), close(second[0]);
    for (uint64_t number; read_all(first[0], &number, sizeof number);) {
      number *= 2;
      write_all(second[1], &number, sizeof number);
    }
    _exit(0);
  }
  close(first[0]), close(first[1]), close(second[1]);
  uint64_t expected = 0, got = 0;
  auto take = [&](uint64_t count) {
    for (uint64_t end = expected + count; expected < end; ++expected) {
      need(read_all(second[0], &got, sizeof got), "the pipeline has ended");
      if (!check(got == expected * 2, "number %llu is %llu", (unsigned long long)expected,
                 (unsigned long long)got))
        _exit(1);
    }
  };
  take(1'000);
  ready();
  while (!moved()) take(100);
  take(100'000);
  close(second[0]);
  int status = 0;
  for (int child = 0; child < 2; ++child) {
    check(wait(&status) > 0, "wait: errno %d", errno);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status 0x%x", status);
  }
  return ok();
}
