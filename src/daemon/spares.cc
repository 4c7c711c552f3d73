// clang-format off: <signal.h> has a macro named as a field of the image.
#include "daemon/spares.h"
// clang-format on

#include "base/clock.h"
#include "base/log.h"
#include "capsule/shell.h"

namespace godwit::daemon {
namespace {

using std::chrono::milliseconds;

// How long after something was taken its user is thought to be busy, unless he says that he isn't.
constexpr std::int64_t busy_us_max = 2'000'000;
// Also how soon a spare that died, or a shell that a dying worker retired, is noticed.
constexpr milliseconds look_again{1000};
// After a failure (disk full, too many processes) the log shouldn't be filled.
constexpr milliseconds failed_pause{30'000};

}  // namespace

Spares::Spares(const NodeEnv& env) : env_(env), thread_([this] { keep_stocked(); }) {}

Spares::~Spares() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

Result<std::unique_ptr<Worker>> Spares::start(wire::WorkerOrder order, const Announce& announce) {
  while (true) {
    std::unique_ptr<Worker> worker;
    {
      const std::lock_guard lock(mutex_);
      taken_at_us_ = monotonic_us();
      if (!workers_.empty()) {
        worker = std::move(workers_.front());
        workers_.pop_front();
      }
    }
    const bool spare = worker != nullptr;
    if (!spare) worker = TRY(Worker::launch(env_));
    Result<void> sent;
    if (announce) sent = announce(*worker);
    const bool announced = sent.ok();
    if (announced) sent = worker->send(env_, order);
    if (sent.ok()) return worker;
    worker->kill();
    worker->wait_end();
    if (!spare || !announced) return std::move(sent).error().with("order to the worker");
    LOG(warn, "a spare worker was dead: {}", sent.error().what());
  }
}

Result<wire::Report> Spares::execute(wire::WorkerOrder order) {
  return finish_short(*TRY(start(std::move(order))));
}

CapsuleId Spares::take_shell() {
  const std::lock_guard lock(mutex_);
  taken_at_us_ = monotonic_us();
  if (shells_.empty()) return {};
  CapsuleId shell = std::move(shells_.front());
  shells_.pop_front();
  return shell;
}

void Spares::restock() {
  {
    const std::lock_guard lock(mutex_);
    wanted_ = true;
  }
  changed_.notify_all();
}

void Spares::keep_stocked() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return wanted_ || stop_; });
  while (!stop_) {
    if (!wanted_) changed_.wait_for(lock, look_again, [&] { return wanted_ || stop_; });
    if (stop_) return;
    if (!wanted_ && monotonic_us() - taken_at_us_ < busy_us_max) continue;
    wanted_ = false;
    std::erase_if(workers_, [](const auto& worker) { return worker->ended(); });
    lock.unlock();
    bool failed = false;
    if (auto gone = capsule::Shell::destroy_retired(env_); !gone.ok()) {
      LOG(error, "retired shells: {}", gone.error().what());
      failed = true;
    }
    while (!failed && stock_one()) {
    }
    lock.lock();
    if (failed) changed_.wait_for(lock, failed_pause, [&] { return stop_; });
  }
}

// False: there is enough, or it can't be made now.
bool Spares::stock_one() {
  bool worker_wanted = false, shell_wanted = false;
  {
    const std::lock_guard lock(mutex_);
    worker_wanted = workers_.size() < workers_kept;
    shell_wanted = shells_.size() < shells_kept;
    if (stop_) return false;
  }
  if (worker_wanted) {
    auto worker = Worker::launch(env_);
    if (!worker.ok()) {
      LOG(error, "spare worker: {}", worker.error().what());
      return false;
    }
    const std::lock_guard lock(mutex_);
    workers_.push_back(std::move(worker).value());
    return true;
  }
  if (!shell_wanted) return false;
  auto shell = capsule::Shell::make_spare(env_);
  if (!shell.ok()) {
    LOG(error, "{}", shell.error().what());
    return false;
  }
  const std::lock_guard lock(mutex_);
  shells_.push_back(std::move(shell).value());
  return true;
}

}  // namespace godwit::daemon
