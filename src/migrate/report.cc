#include "migrate/report.h"

#include "base/log.h"

namespace godwit::migrate {

void EventSink::send(const wire::WorkerEvent& event) {
  if (daemon_gone_) return;
  Result<void> sent = channel_.send(event);
  if (sent.ok()) return;
  daemon_gone_ = true;
  LOG(warn, "no more events to the daemon: {}", sent.error().what());
}

void EventSink::progress(const wire::Progress& progress) {
  wire::WorkerEvent event;
  *event.mutable_progress() = progress;
  send(event);
}

void EventSink::listening(std::uint16_t port) {
  wire::WorkerEvent event;
  event.mutable_listening()->set_port(port);
  send(event);
}

void EventSink::done(const wire::Report& report) {
  wire::WorkerEvent event;
  *event.mutable_done() = report;
  send(event);
}

void Reporter::close_phase(std::int64_t now_us) {
  if (report_.phases_size() == 0) return;
  wire::Phase& last = *report_.mutable_phases(report_.phases_size() - 1);
  last.set_us(now_us - began_us_ - last.begin_us());
}

void Reporter::phase(const std::string& name) {
  std::int64_t now = monotonic_us();
  close_phase(now);
  wire::Phase& next = *report_.add_phases();
  next.set_name(name);
  next.set_begin_us(now - began_us_);
}

void Reporter::progress(std::uint64_t bytes_remaining) {
  wire::Progress p;
  if (report_.phases_size() > 0) p.set_phase(report_.phases(report_.phases_size() - 1).name());
  p.set_bytes_sent(report_.bytes_sent());
  p.set_bytes_remaining(bytes_remaining);
  p.set_dirty_bytes_per_s(report_.dirty_bytes_per_s());
  p.set_bytes_per_s(report_.link_bytes_per_s());
  sink_.progress(p);
}

const wire::Report& Reporter::finish() {
  std::int64_t now = monotonic_us();
  close_phase(now);
  report_.set_total_us(now - began_us_);
  return report_;
}

}  // namespace godwit::migrate
