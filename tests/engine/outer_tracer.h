// Strikes at the n-th system call of a worker: it is its last one, or it fails, or something is
// done to the program that is being moved. A process of its own traces the worker (which traces
// others: that doesn't disturb it) and counts the system calls of all its threads: entries and
// exits alike, for a kill at an entry leaves the call undone; where calls shall fail, entries of
// those that can.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"

namespace godwit {

class OuterTracer {
 public:
  enum class Strike { kill, fail, act };
  struct Plan {
    std::int64_t at = 0;  // Counted from 1. 0: only counts.
    Strike strike = Strike::kill;
    std::function<void()> act = {};  // Strike::act: what is done, in the tracer's process.
  };
  static Result<OuterTracer> start(pid_t worker, Plan plan);
  OuterTracer(OuterTracer&& other) noexcept;
  OuterTracer& operator=(OuterTracer&&) = delete;
  ~OuterTracer();  // Lets the worker go, if it still lives.

  std::int64_t count() const;
  bool struck() const;       // The plan's moment came.
  std::string what() const;  // Which call that was.

 private:
  struct Shared;
  OuterTracer(pid_t pid, Shared* shared) : pid_(pid), shared_(shared) {}
  [[noreturn]] static void trace(pid_t worker, const Plan& plan, Shared& shared);
  static void at_call(pid_t worker, pid_t tid, bool entry, const Plan& plan, Shared& shared,
                      pid_t& failing);
  pid_t pid_;
  Shared* shared_;
};

}  // namespace godwit
