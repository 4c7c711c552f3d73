// One migration as its source's daemon sees it, while it lasts.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>

#include "base/clock.h"
#include "daemon/migrations.h"

namespace godwit::daemon {

// What is known of one migration from here. The asker sees only what the mutex guards, and only the
// latest news: a client that doesn't read must not hold up the worker.
struct Migrations::Attempt {
  wire::Mode mode = wire::AUTO;
  std::int64_t downtime_target_us = 0;
  node::ReserveReply reserved;
  api::MigrationResult result;
  std::string cause;  // Why its worker gave no report, or none that is an outcome.
  std::int64_t began_us = monotonic_us();
  std::int64_t order_us = 0;  // From the request to the worker's order.
  std::shared_ptr<Worker> worker;

  static constexpr std::chrono::milliseconds ask_again{500};
  // How long the one who asked waits for the end of a doubt before he is told of it.
  static constexpr std::chrono::seconds doubt_patience{5};

  std::mutex conclusions;  // One after the other: in doubt, then how it ended.
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<api::MigrateProgress> news;
  std::optional<api::MigrationResult> answer;
  std::optional<std::chrono::steady_clock::time_point> doubt_since;

  void tell(std::optional<api::MigrateProgress> progress) {
    const std::lock_guard lock(mutex);
    news = std::move(progress);
    changed.notify_all();
  }
  void tell_result() {
    const std::lock_guard lock(mutex);
    if (!answer) answer = result;
    changed.notify_all();
  }
  void begin_doubt() {
    const std::lock_guard lock(mutex);
    if (!doubt_since) doubt_since = std::chrono::steady_clock::now();
  }
  // Of the one who asked: it must not last as long as the doubt may.
  bool patience_ended() const {
    return !answer && doubt_since &&
           std::chrono::steady_clock::now() - *doubt_since > doubt_patience;
  }
};

}  // namespace godwit::daemon
