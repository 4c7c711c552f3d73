// For tests: a program in a process of its own, a skeleton to move it into, and streams between.
//
// Both are forked from the test, one after the other, so they begin with the same address space;
// whatever the program maps later is mapped in the skeleton by injected calls, as restore does it.
// When all pages are there, the skeleton is given the program's registers and is the program.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>
#include <sys/user.h>

#include <functional>
#include <memory>
#include <vector>

#include "memory/areas.h"
#include "memory/source_memory.h"
#include "memory/target_memory.h"

namespace godwit::memory::testing {

inline constexpr std::int64_t generous_ms = 60'000;

// Calls `syscall` from code that is known to the test and present in every fork of it.
long raw_syscall(long nr, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0);

// A forked child that we stop and make do things. Killed and reaped at the end.
class Child {
 public:
  // Runs `body` and exits with its result.
  static Child run(const std::function<int()>& body);
  // Stopped from its first moment on.
  static Child skeleton();
  Child() = default;
  Child(Child&& other) noexcept;
  Child& operator=(Child&&) = delete;
  ~Child();

  pid_t pid() const { return pid_; }
  void stop();  // Seizes and interrupts every thread.
  void go();    // Detaches from all.
  bool stopped() const { return !threads_.empty(); }
  // In a stopped child; the registers are put back. Negative errno on failure.
  long inject(long nr, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0);
  UniqueFd take_fd(int number);  // pidfd_getfd
  UniqueFd make_uffd();          // Stopped.
  user_regs_struct registers() const;
  void set_registers(const user_regs_struct& regs);
  int wait_exit();  // Exit status, -1 after a signal.

 private:
  pid_t pid_ = -1;
  std::vector<pid_t> threads_;  // Stopped ones, the leader first.
};

// Shared between the test and its children.
struct Shared {
  volatile int command = 0;  // To the program.
  volatile int state = 0;    // From it.
  volatile std::uint64_t counter = 0;
  volatile std::uint64_t refused = 0;
};
Shared* make_shared_page();
void await(const std::function<bool()>& condition, const char* what);

struct StreamPair {
  UniqueFd source;
  UniqueFd target;
};
StreamPair make_stream();

// One migration's worth of everything.
class Bed {
 public:
  struct Settings {
    int streams = 2;
    bool copy_uffd = true;
    bool drop = true;
    bool track = true;
    bool layouts = true;
    std::int64_t huge_page_us_max = 0;  // 1: any huge page is too expensive.
  };
  Bed(Child& source, Child& target, Settings settings);
  Bed(Child& source, Child& target) : Bed(source, target, Settings()) {}

  Tracking arm();
  void prepare();  // Makes the skeleton's mappings those of the source; tells the source so.
  RoundStats round(RoundKind kind, std::vector<RoundOptions::Range> eager = {});
  void freeze() {
    source_.stop();
    prepare();
  }
  // Every private page of the (stopped) source against the target; how many were compared.
  std::uint64_t compare();
  // Post-copy: pager, registers, go; the source serves until done.
  void start_postcopy(bool go = true);
  PagerStats drain();

  SourceMemory& memory() { return *source_memory_; }
  TargetMemory& target_memory() { return *target_memory_; }
  std::vector<int> source_streams() const;
  SpaceId space() const { return 42; }
  StreamPair& stream(std::size_t i) { return streams_[i]; }
  StreamPair& urgent() { return urgent_; }
  ReceivedRound last_received;
  DrainStats drain_stats;

 private:
  Child& source_;
  Child& target_;
  Settings settings_;
  std::vector<StreamPair> streams_;
  StreamPair urgent_;
  UniqueFd mem_fd_, copy_uffd_, fault_uffd_;
  std::vector<Area> areas_;
  std::uint64_t round_ = 0;
  std::unique_ptr<SourceMemory> source_memory_;
  std::unique_ptr<TargetMemory> target_memory_;
  std::function<Result<DrainStats>()> finish_serving_;
};

}  // namespace godwit::memory::testing
