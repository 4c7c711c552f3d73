// Keeps book of one migration: phases with their times, and progress for whoever watches.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "base/clock.h"
#include "migrate/worker_channel.h"
#include "wire/worker.pb.h"

namespace godwit::migrate {

// The source's phase from which on the capsule runs on the target: godwitd looks for it.
inline constexpr const char* drain_phase = "drain";

// News for the daemon. It may be gone; what must be known is in the records, so sending never
// fails, but for the port: without it nobody comes. Any thread.
class EventSink {
 public:
  explicit EventSink(WorkerChannel& channel) : channel_(channel) {}
  void progress(const wire::Progress& progress);
  Result<void> listening(std::uint16_t port);
  void done(const wire::Report& report);

 private:
  Result<void> try_send(const wire::WorkerEvent& event);
  void send(const wire::WorkerEvent& event);
  std::mutex mutex_;
  WorkerChannel& channel_;
  bool daemon_gone_ = false;
};

// Also the sign of life: godwitd takes a worker that is silent for long for dead. Progress goes out
// from a thread of its own, however long a round takes.
class Reporter {
 public:
  static constexpr std::int64_t tick_ms = 500;

  explicit Reporter(EventSink& sink);
  ~Reporter();
  Reporter(const Reporter&) = delete;
  Reporter& operator=(const Reporter&) = delete;

  // Ends the phase before.
  void phase(const std::string& name);
  // Sends progress now; else it goes out twice a second.
  void tell();
  // What is known to be left, and how fast the program writes.
  void estimate(std::uint64_t bytes_remaining, std::uint64_t dirty_bytes_per_s);
  // Asked by the ticking thread: bytes that have left so far. Set once the links stand.
  void watch(std::function<std::uint64_t()> bytes_sent);

  wire::Report& report() { return report_; }  // The main thread's only.
  // Ends the last phase and fills in the total.
  const wire::Report& finish();

 private:
  void close_phase(std::int64_t now_us);
  void tick();
  void send_progress(std::unique_lock<std::mutex>& lock);

  EventSink& sink_;
  std::int64_t began_us_;
  wire::Report report_;

  std::mutex mutex_;  // Guards what follows.
  std::condition_variable stopped_;
  bool stop_ = false;
  wire::Progress progress_;
  std::function<std::uint64_t()> bytes_sent_;
  std::uint64_t sent_before_ = 0;
  std::int64_t sent_before_us_ = 0;
  std::thread ticker_;  // Last: uses all of the above.
};

}  // namespace godwit::migrate
