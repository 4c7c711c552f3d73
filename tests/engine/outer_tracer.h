// Makes the n-th system call of a worker its last one, or fail. A process of its own traces the
// worker (which traces others: that doesn't disturb it) and counts entries and exits of system calls
// of all its threads.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "base/result.h"

namespace godwit {

class OuterTracer {
 public:
  struct Plan {
    std::int64_t at = 0;  // Counted from 1. 0: only counts.
    int fail_with = 0;    // errno; 0: SIGKILL.
  };
  static Result<OuterTracer> start(pid_t worker, Plan plan);
  OuterTracer(OuterTracer&& other) noexcept;
  OuterTracer& operator=(OuterTracer&&) = delete;
  ~OuterTracer();  // Lets the worker go, if it still lives.

  std::int64_t count() const;
  bool struck() const;  // The plan's moment came.

 private:
  struct Shared;
  OuterTracer(pid_t pid, Shared* shared) : pid_(pid), shared_(shared) {}
  [[noreturn]] static void trace(pid_t worker, Plan plan, Shared& shared);
  pid_t pid_;
  Shared* shared_;
};

}  // namespace godwit
