// For tracees of several processes: relatives that do what they are asked over pipes, and tell what
// they see of themselves.
#pragma once

#include <functional>
#include <map>
#include <memory>

#include "tracee.h"

namespace tracee {

// What a process can say of itself; `memory` is false once its own bytes aren't what they were.
struct Facts {
  pid_t pid, parent, group, session;
  uint64_t asked;  // How often, itself included: counted in its own memory.
  bool memory;
};

// How many SIGCHLD have come: none must come for a move.
inline std::atomic<int> sigchld_count{0};

inline void count_sigchld() {
  struct sigaction action = {};
  action.sa_handler = [](int) { ++sigchld_count; };
  action.sa_flags = SA_RESTART;
  need(sigaction(SIGCHLD, &action, nullptr) == 0, "sigaction");
}

class Relative {
 public:
  // Forks one that runs `born` (setsid, setpgid, more relatives), then answers until its pipe ends.
  explicit Relative(const std::function<void()>& born = [] {}) {
    int to[2], from[2];
    need(pipe(to) == 0 && pipe(from) == 0, "pipe");
    pid_ = fork();
    need(pid_ >= 0, "fork");
    if (pid_ == 0) {
      close(to[1]), close(from[0]);
      born();
      serve(to[0], from[1]);
    }
    close(to[0]), close(from[1]);
    to_ = to[1], from_ = from[0];
    facts_ = ask();
  }
  ~Relative() {
    close(to_), close(from_);
    // A child of ours, or somebody else's: then it isn't ours to wait for.
    waitpid(pid_, nullptr, 0);
  }
  Relative(const Relative&) = delete;
  Relative& operator=(const Relative&) = delete;

  pid_t pid() const { return facts_.pid; }

  Facts ask() {
    Facts facts = {};
    need(write(to_, "?", 1) == 1, "write to %d", pid_);
    need(read(from_, &facts, sizeof facts) == sizeof facts, "no answer from %d", pid_);
    return facts;
  }

  // As when it was born.
  void check_same(const char* who) {
    const Facts now = ask();
    const std::string name = who;
    same((name + ": pid").c_str(), facts_.pid, now.pid);
    same((name + ": parent").c_str(), facts_.parent, now.parent);
    same((name + ": group").c_str(), facts_.group, now.group);
    same((name + ": session").c_str(), facts_.session, now.session);
    same((name + ": times it was asked").c_str(), facts_.asked + 1, now.asked);
    check(now.memory, "%s: its memory has changed", who);
    facts_ = now;
  }

 private:
  [[noreturn]] static void serve(int from, int to) {
    constexpr size_t bytes = 256 * KiB;
    uint8_t* memory = map(bytes);
    const auto seed = static_cast<uint64_t>(getpid());
    fill(memory, bytes, seed);
    Facts facts = {};
    for (char question; read(from, &question, 1) == 1;) {
      bool intact = true;
      for (size_t i = 0; i < bytes / 8; ++i)
        intact &= reinterpret_cast<uint64_t*>(memory)[i] == mix(seed + i);
      facts = {getpid(), getppid(), getpgrp(), getsid(0), facts.asked + 1, intact};
      if (write(to, &facts, sizeof facts) != sizeof facts) _exit(2);
    }
    _exit(0);
  }

  pid_t pid_ = 0;
  int to_ = -1, from_ = -1;
  Facts facts_ = {};
};

}  // namespace tracee
