// Keeps book of one migration: phases with their times, and progress for whoever watches.
#pragma once

#include <string>

#include "base/clock.h"
#include "migrate/worker_channel.h"
#include "wire/worker.pb.h"

namespace godwit::migrate {

// News for the daemon. It may be gone; what must be known is in the records, so sending never fails.
class EventSink {
 public:
  explicit EventSink(WorkerChannel& channel) : channel_(channel) {}
  void progress(const wire::Progress& progress);
  void listening(std::uint16_t port);
  void done(const wire::Report& report);

 private:
  void send(const wire::WorkerEvent& event);
  WorkerChannel& channel_;
  bool daemon_gone_ = false;
};

class Reporter {
 public:
  explicit Reporter(EventSink& sink) : sink_(sink), began_us_(monotonic_us()) {}

  // Ends the phase before.
  void phase(const std::string& name);
  void progress(std::uint64_t bytes_remaining);
  wire::Report& report() { return report_; }
  // Ends the last phase and fills in the total.
  const wire::Report& finish();

 private:
  void close_phase(std::int64_t now_us);

  EventSink& sink_;
  std::int64_t began_us_;
  wire::Report report_;
};

}  // namespace godwit::migrate
