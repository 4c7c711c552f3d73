// Threads that sit in a system call while the program is moved.
//
// The kernel interrupts many calls when a tracer stops their thread (signal(7) lists them). A
// program must not see that: no EINTR, no early timeout, no timeout that starts again from zero.
//  - TimedCall repeats a call with a timeout. Early is an error at once; late is an error beyond
//  what a
//    metronome saw the whole process stand still, plus a slack for busy machines. A call that is
//    restarted with its full time at each of several moves is later than that.
//  - BlockedCall makes one call without a timeout: it may only return for the reason the tracee
//  gives it.
#pragma once

#include <functional>
#include <mutex>

#include "tracee.h"

namespace tracee {

// The number of the call in which a thread of ours is blocked, -1 while it runs.
inline long blocked_in(pid_t tid) {
  std::string text = read_file("/proc/self/task/" + std::to_string(tid) + "/syscall");
  return text.empty() || text[0] == 'r' ? -1 : atol(text.c_str());
}

inline long sys_result(long r) { return r < 0 ? -errno : r; }

// How long this process stood still in all, seen by a thread that ought to run every millisecond.
class Metronome {
 public:
  Metronome()
      : thread_([this](std::atomic<bool>& stop) {
          while (!stop) {
            usleep(1000);
            std::lock_guard lock(mutex_);
            stalled_us_ += gap_us();
            last_us_ = now_us();
          }
        }) {}
  // With the gap that is under way: after a stop our thread may be the last one to run again.
  int64_t stalled_us() {
    std::lock_guard lock(mutex_);
    return stalled_us_ + gap_us();
  }

 private:
  static constexpr int64_t gap_us_min = 5'000;
  int64_t gap_us() const {
    int64_t gap = now_us() - last_us_;
    return gap > gap_us_min ? gap : 0;
  }

  std::mutex mutex_;
  int64_t stalled_us_ = 0;
  int64_t last_us_ = now_us();
  Background thread_;
};

class TimedCall {
 public:
  static constexpr int64_t asked_us_default = 1'500'000;
  static constexpr int64_t late_us_max = 700'000;

  // `call(us)` waits for `us` of `clock` and gives the result or -errno; `expected` is what a
  // timeout gives. A deadline on CLOCK_REALTIME is measured on it: at each move CLOCK_MONOTONIC may
  // fall behind it by the time that a message takes.
  TimedCall(const char* name, long number, long expected, std::function<long(int64_t us)> call,
            clockid_t clock = CLOCK_MONOTONIC)
      : name_(name), expected_(expected), clock_(clock), call_(std::move(call)) {
    thread_ = std::thread([this] { run(); });
    need(eventually([&] { return tid_ != 0 && blocked_in(tid_) == number; }),
         "%s: never blocked in call %ld, but in %ld", name, number, blocked_in(tid_));
  }
  // Lets the present call come to its end.
  void finish() {
    stop_ = true;
    thread_.join();
    check(calls_ > 0, "%s: no call came to its end", name_);
  }

 private:
  void run() {
    tid_ = gettid_now();
    while (!stop_) {
      int64_t stalled_before = metronome_.stalled_us();
      int64_t start = now_us(clock_);
      long result = call_(asked_us_);
      int64_t took = now_us(clock_) - start;
      int64_t stalled = metronome_.stalled_us() - stalled_before;
      same(name_, expected_, result);
      check(took >= asked_us_, "%s: returned after %lld us, asked for %lld", name_,
            static_cast<long long>(took), static_cast<long long>(asked_us_));
      check(took <= asked_us_ + stalled + late_us_max,
            "%s: took %lld us, asked for %lld, of which the process stood still %lld", name_,
            static_cast<long long>(took), static_cast<long long>(asked_us_),
            static_cast<long long>(stalled));
      ++calls_;
    }
  }

  const char* name_;
  long expected_;
  clockid_t clock_;
  int64_t asked_us_ = asked_us_default;
  std::function<long(int64_t)> call_;
  Metronome metronome_;
  std::atomic<bool> stop_{false};
  std::atomic<pid_t> tid_{0};
  std::atomic<int> calls_{0};
  std::thread thread_;
};

// A tracee that is only one call with a timeout.
inline int timed_call_tracee(const char* name, long number, long expected,
                             std::function<long(int64_t us)> call,
                             clockid_t clock = CLOCK_MONOTONIC) {
  TimedCall timed(name, number, expected, std::move(call), clock);
  ready();
  wait_moved();
  timed.finish();
  return ok();
}

class BlockedCall {
 public:
  BlockedCall(const char* name, long number, std::function<long()> call)
      : name_(name), number_(number), call_(std::move(call)) {
    thread_ = std::thread([this] {
      tid_ = gettid_now();
      result_ = call_();
      done_ = true;
    });
    need(eventually([&] { return tid_ != 0 && blocked_in(tid_) == number_; }),
         "%s: never blocked in call %ld, but in %ld", name, number_, blocked_in(tid_));
  }
  ~BlockedCall() {
    if (thread_.joinable())
      thread_.detach();  // Still blocked: a failure was recorded, main returns.
  }
  pid_t tid() const { return tid_; }
  pthread_t handle() { return thread_.native_handle(); }

  // After the moves: the call is still under way and has seen nothing.
  bool check_still_blocked() {
    bool in_call = eventually([&] {
      long now = blocked_in(tid_);
      return done_ || now == number_ || now == SYS_restart_syscall;
    });
    return check(!done_, "%s: returned %ld without a reason", name_, done_ ? result_ : 0L) &&
           check(in_call, "%s: thread is in call %ld, not in %ld", name_, blocked_in(tid_),
                 number_);
  }
  // After the tracee gave it a reason to return.
  bool check_returns(long expected) {
    if (!check(eventually([&] { return done_.load(); }), "%s: was not woken", name_)) return false;
    thread_.join();
    return same(name_, expected, result_);
  }

 private:
  const char* name_;
  long number_;
  std::function<long()> call_;
  std::atomic<pid_t> tid_{0};
  std::atomic<bool> done_{false};
  long result_ = 0;
  std::thread thread_;
};

// A signal handler that does nothing, without SA_RESTART: the interrupted call returns EINTR.
inline void catch_quietly(int signal) {
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  need(sigaction(signal, &action, nullptr) == 0, "sigaction(%d)", signal);
}

}  // namespace tracee
