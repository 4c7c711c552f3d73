// Since when does a sleeping thread sleep? Needed to continue relative timeouts elsewhere; see
// sleep_clock.cc.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "sys/tracing.h"

namespace godwit::capture {

// What was seen of one thread while it still slept undisturbed.
class SleepSample {
 public:
  // The call that restart_syscall(2) continues, if that is what the thread is in and it is the one
  // seen; else -1.
  std::int64_t restarted_nr(const sys::Regs& regs) const;

  // CLOCK_MONOTONIC; nothing where the sample says nothing about the call that `regs` are in.
  std::optional<std::int64_t> asleep_since_ns(const sys::Regs& regs) const;

 private:
  friend class SleepClock;
  bool same_call(const sys::Regs& regs) const;
  pid_t pid_ = 0, tid_ = 0;
  std::int64_t nr_ = -1;
  std::int64_t restarted_nr_ = -1;
  std::uint64_t args_[6] = {};
  std::int64_t exec_start_ns_ = 0;  // By the clock of this processor's run queue.
  std::size_t processor_ = 0;
  std::optional<std::int64_t> since_ns_;  // The same by CLOCK_MONOTONIC, once it is dated.
  std::uint64_t times_scheduled_ = 0;
  std::int64_t ran_ns_ = 0;
  bool confirmed_ = false;
};

// Translates the scheduler's clock of each processor to CLOCK_MONOTONIC. Moves the calling thread
// across all processors once (20 us each); its affinity is as before afterwards.
class SleepClock {
 public:
  // Nothing for threads that run, or that sleep in a call without a timeout.
  static std::optional<SleepSample> sample(pid_t pid, pid_t tid);
  // After all samples, or what is lost of a run queue's time in between would make sleeps longer
  // than they were.
  static SleepClock calibrate();
  void date(SleepSample& sample) const;
  // To be called while the thread stands in the freezer, which was put on at `held_at_ns`
  // (CLOCK_MONOTONIC): whether it ran before that, without our doing, is then seen in how often and
  // since when it had a processor.
  void confirm(SleepSample& sample, std::int64_t held_at_ns) const;

 private:
  struct Look;
  static std::optional<Look> look(pid_t pid, pid_t tid);
  std::optional<std::int64_t> monotonic(std::int64_t exec_start_ns, std::size_t processor) const;
  std::vector<std::optional<std::int64_t>> offset_ns_;  // By processor.
};

}  // namespace godwit::capture
