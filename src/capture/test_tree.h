// For the tests of this folder: a cgroup of one's own with the self-checking program in it.
#pragma once

#include <functional>
#include <string>

#include "capture/freeze.h"
#include "capture/selfcheck_tracee.h"

namespace godwit::capture {

class TestTree {
 public:
  // With `only_sleepers`: `sleepers` threads in nanosleep, nothing else.
  static Result<TestTree> start(int sleepers = 0, bool only_sleepers = false);
  // `program` runs in a process forked from the test; it calls Ready when it is set up. Its own
  // descriptors are /dev/null as 0, 1, 2.
  using Ready = std::function<void()>;
  static Result<TestTree> start_function(const std::function<void(Ready)>& program);
  TestTree(TestTree&&) noexcept;
  TestTree& operator=(TestTree&&) = delete;
  ~TestTree();

  TreeRef ref() const { return {directory_, true, 0}; }
  pid_t pid() const { return pid_; }
  // Waits until every thread has gone round once more. Fails with what the program found wrong.
  Result<void> await_beats();
  std::uint64_t beats() const;  // Of all threads together.
  // Why the program can't be trusted any more; empty if all is well.
  std::string complaint() const;

 private:
  TestTree() = default;
  static Result<TestTree> make_group();
  std::string directory_;
  pid_t pid_ = 0;
  SelfCheck* shared_ = nullptr;
};

// Why the tests of this folder can't run here; empty if they can.
std::string why_no_trees();

}  // namespace godwit::capture
