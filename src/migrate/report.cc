#include "migrate/report.h"

#include "base/log.h"

namespace godwit::migrate {

Result<void> EventSink::try_send(const wire::WorkerEvent& event) {
  std::lock_guard lock(mutex_);
  if (daemon_gone_) return make_error(Errc::peer_lost, "the daemon is gone");
  Result<void> sent = channel_.send(event);
  if (sent.ok()) return {};
  daemon_gone_ = true;
  LOG(warn, "no more events to the daemon: {}", sent.error().what());
  return sent;
}

void EventSink::send(const wire::WorkerEvent& event) { (void)try_send(event); }

void EventSink::progress(const wire::Progress& progress) {
  wire::WorkerEvent event;
  *event.mutable_progress() = progress;
  send(event);
}

Result<void> EventSink::listening(std::uint16_t port) {
  wire::WorkerEvent event;
  event.mutable_listening()->set_port(port);
  return try_send(event);
}

void EventSink::done(const wire::Report& report) {
  wire::WorkerEvent event;
  *event.mutable_done() = report;
  send(event);
}

Reporter::Reporter(EventSink& sink)
    : sink_(sink), began_us_(monotonic_us()), ticker_([this] { tick(); }) {}

Reporter::~Reporter() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stopped_.notify_all();
  ticker_.join();
}

void Reporter::tick() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    stopped_.wait_for(lock, std::chrono::milliseconds(tick_ms));
    if (!stop_) send_progress(lock);
  }
}

void Reporter::send_progress(std::unique_lock<std::mutex>& lock) {
  if (bytes_sent_) {
    std::uint64_t sent = bytes_sent_();
    std::int64_t now_us = monotonic_us();
    if (now_us > sent_before_us_)
      progress_.set_bytes_per_s((sent - sent_before_) * 1'000'000 /
                                static_cast<std::uint64_t>(now_us - sent_before_us_));
    sent_before_ = sent;
    sent_before_us_ = now_us;
    progress_.set_bytes_sent(sent);
  }
  wire::Progress progress = progress_;
  lock.unlock();  // The daemon may be slow to read; nobody else shall wait for that.
  sink_.progress(progress);
  lock.lock();
}

void Reporter::tell() {
  std::unique_lock lock(mutex_);
  send_progress(lock);
}

void Reporter::estimate(std::uint64_t bytes_remaining, std::uint64_t dirty_bytes_per_s) {
  std::lock_guard lock(mutex_);
  progress_.set_bytes_remaining(bytes_remaining);
  progress_.set_dirty_bytes_per_s(dirty_bytes_per_s);
}

void Reporter::watch(std::function<std::uint64_t()> bytes_sent) {
  std::lock_guard lock(mutex_);
  bytes_sent_ = std::move(bytes_sent);
  sent_before_us_ = monotonic_us();
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
  std::lock_guard lock(mutex_);
  progress_.set_phase(name);
}

const wire::Report& Reporter::finish() {
  std::int64_t now = monotonic_us();
  close_phase(now);
  report_.set_total_us(now - began_us_);
  std::lock_guard lock(mutex_);
  bytes_sent_ = nullptr;  // What it asks is about to be taken apart.
  return report_;
}

}  // namespace godwit::migrate
