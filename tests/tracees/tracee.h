// What all tracees share: the protocol with the harness and a few ways to look at oneself.
//
// A tracee sets up one feature, prints "ready", is moved any number of times in any mode (it never
// learns of it), reads the line "check", looks at its feature again, prints "ok" and exits with 0,
// or "FAIL: reason" lines and exits with 1. What this machine or user can't do is exit code 77 and
// "skip: reason". A tracee knows nothing of the program that moves it.
//
// All output goes out by one write(2) a line: lines of several threads never mix, and no stdio
// buffer becomes part of the test. Everything is inline: a tracee is one file, also when it is
// linked statically.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace tracee {

constexpr int skip_exit_code = 77;
constexpr size_t page_size = 4096;
constexpr size_t KiB = 1024;
constexpr size_t MiB = 1024 * KiB;
constexpr size_t GiB = 1024 * MiB;

inline std::atomic<int> failures{0};

inline void vsay(const char* prefix, const char* fmt, va_list args) {
  char line[1024];
  int used = snprintf(line, sizeof line, "%s", prefix);
  used += vsnprintf(line + used, sizeof line - used - 1, fmt, args);
  if (used > static_cast<int>(sizeof line) - 2) used = sizeof line - 2;
  line[used++] = '\n';
  for (int done = 0; done < used;) {
    ssize_t n = write(1, line + done, used - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) _exit(3);  // Nobody can be told.
    done += static_cast<int>(n);
  }
}

[[gnu::format(printf, 1, 2)]] inline void say(const char* fmt, ...) {
  va_list args;
  va_start(args, fmt);
  vsay("", fmt, args);
  va_end(args);
}

// Records a failure; the run goes on, so that one run shows all that broke.
[[gnu::format(printf, 2, 3)]] inline bool check(bool cond, const char* fmt, ...) {
  if (cond) return true;
  constexpr int printed_max = 20;
  if (failures++ >= printed_max) return false;
  va_list args;
  va_start(args, fmt);
  vsay("FAIL: ", fmt, args);
  va_end(args);
  return false;
}

template <typename A, typename B>
requires(std::is_convertible_v<A, long long>&& std::is_convertible_v<B, long long>) bool same(
    const char* what, A before, B now) {
  return check(static_cast<long long>(before) == static_cast<long long>(now),
               "%s was %lld (0x%llx), is %lld (0x%llx)", what, static_cast<long long>(before),
               static_cast<long long>(before), static_cast<long long>(now),
               static_cast<long long>(now));
}

inline bool same(const char* what, const std::string& before, const std::string& now) {
  return check(before == now, "%s was \"%s\", is \"%s\"", what, before.c_str(), now.c_str());
}

// For the set-up: a tracee that can't set up its feature has nothing to check.
[[gnu::format(printf, 2, 3)]] inline void need(bool cond, const char* fmt, ...) {
  if (cond) return;
  int err = errno;
  va_list args;
  va_start(args, fmt);
  vsay("FAIL: set-up: ", fmt, args);
  va_end(args);
  say("FAIL: set-up: errno %d (%s)", err, strerror(err));
  _exit(1);
}

[[noreturn, gnu::format(printf, 1, 2)]] inline void skip(const char* fmt, ...) {
  va_list args;
  va_start(args, fmt);
  vsay("skip: ", fmt, args);
  va_end(args);
  _exit(skip_exit_code);
}

inline void ready() { say("ready"); }

inline bool check_was_read = false;  // Main thread only.

// Returns when the harness has sent "check". Other lines are ignored.
inline void wait_moved() {
  char line[64];
  size_t used = 0;
  while (!check_was_read) {
    char c;
    ssize_t n = read(0, &c, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      say("FAIL: stdin ended before \"check\": read gave %zd, errno %d", n, errno);
      _exit(1);
    }
    if (c != '\n' && c != '\r') {
      if (used < sizeof line) line[used++] = c;
      continue;
    }
    check_was_read = used == 5 && memcmp(line, "check", 5) == 0;
    used = 0;
  }
}

// For loops that exercise a feature on the main thread: true once "check" has come.
inline bool moved() {
  if (check_was_read) return true;
  pollfd p = {0, POLLIN, 0};
  if (poll(&p, 1, 0) <= 0) return false;
  wait_moved();
  return true;
}

// The value that main returns.
inline int ok() {
  if (failures != 0) return 1;
  say("ok");
  return 0;
}

// -- time ---------------------------------------------------------------------------------------

inline int64_t now_ns(clockid_t clock = CLOCK_MONOTONIC) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

inline int64_t now_us(clockid_t clock = CLOCK_MONOTONIC) { return now_ns(clock) / 1000; }

inline timespec timespec_of_us(int64_t us) {
  return {static_cast<time_t>(us / 1'000'000), static_cast<long>(us % 1'000'000 * 1000)};
}

// Waits for a condition, generously: the machine may be busy. False when `limit_us` went by.
template <typename Condition>
bool eventually(Condition condition, int64_t limit_us = 60'000'000) {
  for (int64_t start = now_us(); now_us() - start < limit_us;) {
    if (condition()) return true;
    usleep(500);
  }
  return condition();
}

// -- threads ------------------------------------------------------------------------------------

inline pid_t gettid_now() { return static_cast<pid_t>(syscall(SYS_gettid)); }

// A thread that runs body(stop) until it is told to stop; joined by the destructor.
class Background {
 public:
  template <typename Body>
  explicit Background(Body body) : thread_([this, body]() mutable { body(stop_); }) {}
  ~Background() { finish(); }
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;
  void finish() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// -- memory -------------------------------------------------------------------------------------

inline uint8_t* map(size_t bytes, int prot = PROT_READ | PROT_WRITE,
                    int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1, void* where = nullptr,
                    off_t offset = 0) {
  void* p = mmap(where, bytes, prot, flags, fd, offset);
  need(p != MAP_FAILED, "mmap(%zu bytes, prot %d, flags 0x%x)", bytes, prot, flags);
  return static_cast<uint8_t*>(p);
}

// splitmix64: every word of the pattern differs, so a page at the wrong place is seen too.
inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

inline void fill(void* at, size_t bytes, uint64_t seed) {
  auto* words = static_cast<uint64_t*>(at);
  for (size_t i = 0; i < bytes / 8; ++i) words[i] = mix(seed + i);
}

inline bool check_filled(const char* what, const void* at, size_t bytes, uint64_t seed) {
  auto* words = static_cast<const uint64_t*>(at);
  for (size_t i = 0; i < bytes / 8; ++i) {
    if (words[i] != mix(seed + i))
      return check(false, "%s: byte %zu of %zu: 0x%llx, expected 0x%llx", what, i * 8, bytes,
                   static_cast<unsigned long long>(words[i]),
                   static_cast<unsigned long long>(mix(seed + i)));
  }
  return true;
}

inline bool check_all(const char* what, const void* at, size_t bytes, uint8_t value) {
  auto* p = static_cast<const uint8_t*>(at);
  for (size_t i = 0; i < bytes; ++i)
    if (p[i] != value)
      return check(false, "%s: byte %zu of %zu is 0x%x, expected 0x%x", what, i, bytes, p[i],
                   value);
  return true;
}

// -- files and /proc ----------------------------------------------------------------------------

inline std::string read_file(const std::string& path) {
  std::string text;
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return text;
  char buffer[16384];
  for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;) text.append(buffer, n);
  close(fd);
  return text;
}

inline void write_file(const std::string& path, const std::string& text, mode_t mode = 0600) {
  int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  need(fd >= 0, "open(%s)", path.c_str());
  need(write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()), "write(%s)",
       path.c_str());
  close(fd);
}

// The value of a line "Key: value" or "Key:\tvalue" of a /proc file.
inline std::string proc_field(const std::string& text, const std::string& key) {
  size_t at = 0;
  while ((at = text.find(key + ":", at)) != std::string::npos) {
    if (at == 0 || text[at - 1] == '\n') break;
    at += key.size();
  }
  if (at == std::string::npos) return "";
  at = text.find_first_not_of(" \t", at + key.size() + 1);
  if (at == std::string::npos || text[at] == '\n') return "";
  std::string value = text.substr(at, text.find('\n', at) - at);
  while (!value.empty() && value.back() == ' ') value.pop_back();
  return value;
}

inline std::string status_field(const std::string& key) {
  return proc_field(read_file("/proc/thread-self/status"), key);
}

// The block of /proc/self/smaps of the mapping that holds `address`; "" where there is none.
inline std::string smaps_of(const void* address) {
  std::string all = read_file("/proc/self/smaps");
  auto wanted = reinterpret_cast<uintptr_t>(address);
  std::string block;
  bool inside = false;
  for (size_t at = 0; at < all.size();) {
    size_t end = all.find('\n', at);
    if (end == std::string::npos) end = all.size();
    std::string line = all.substr(at, end - at);
    at = end + 1;
    unsigned long from, to;
    char dash;
    if (sscanf(line.c_str(), "%lx%c%lx ", &from, &dash, &to) == 3 && dash == '-') {
      if (inside) return block;
      inside = from <= wanted && wanted < to;
    }
    if (inside) block += line + "\n";
  }
  return block;
}

inline bool has_vm_flag(const void* address, const std::string& flag) {
  return (" " + proc_field(smaps_of(address), "VmFlags") + " ").find(" " + flag + " ") !=
         std::string::npos;
}

inline long smaps_kb(const void* address, const std::string& key) {
  return atol(proc_field(smaps_of(address), key).c_str());
}

// A directory of its own below $TMPDIR (or /tmp); removed with its files by the destructor.
class Scratch {
 public:
  Scratch() {
    const char* base = getenv("TMPDIR");
    path_ = std::string(base != nullptr && *base != 0 ? base : "/tmp") + "/tracee-XXXXXX";
    need(mkdtemp(path_.data()) != nullptr, "mkdtemp(%s)", path_.c_str());
  }
  ~Scratch() {
    for (auto entry = made_.rbegin(); entry != made_.rend(); ++entry)
      if (unlink(entry->c_str()) != 0) rmdir(entry->c_str());
    rmdir(path_.c_str());
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const std::string& dir() const { return path_; }
  // A path inside, that the destructor will remove.
  std::string path(const std::string& name) {
    made_.push_back(path_ + "/" + name);
    return made_.back();
  }

 private:
  std::string path_;
  std::vector<std::string> made_;
};

}  // namespace tracee
