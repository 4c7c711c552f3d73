// A godwit-worker that this daemon started: one order in, events out.
//
// The worker goes on when the daemon dies; so it is told by its own descriptor 3 only, holds none
// of the daemon's others, and is killed by nobody but the one who decides on its migration.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/node_env.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "migrate/worker_channel.h"
#include "wire/node.pb.h"
#include "wire/worker.pb.h"

namespace godwit::daemon {

class Worker {
 public:
  // Executed, waiting for its order; it ends by itself if we end first.
  static Result<std::unique_ptr<Worker>> launch(const NodeEnv& env);
  // Once. Errc::peer_lost if it is dead.
  Result<void> send(const NodeEnv& env, wire::WorkerOrder& order);
  static Result<std::unique_ptr<Worker>> start(const NodeEnv& env, wire::WorkerOrder order);
  ~Worker();  // Leaves the process alone; it is reaped by `wait_end` or by the daemon's reaper.

  pid_t pid() const { return pid_; }

  // Errc::timeout; Errc::peer_lost when the worker is gone.
  Result<wire::WorkerEvent> next_event(std::int64_t timeout_ms);

  // Reads events until the report. `progress` may be empty. A worker that ends without a report
  // is Errc::peer_lost: its records say what holds.
  Result<wire::Report> finish(const std::function<void(const wire::Progress&)>& progress,
                              std::int64_t silence_ms_max);

  void kill();      // SIGKILL by pidfd.
  void wait_end();  // Until the process is gone.
  bool ended() const;

 private:
  Worker(pid_t pid, UniqueFd pidfd, UniqueFd channel)
      : pid_(pid), pidfd_(std::move(pidfd)), channel_(std::move(channel)) {}
  pid_t pid_;
  UniqueFd pidfd_;
  migrate::WorkerChannel channel_;
};

wire::WorkerEnv worker_env(const NodeEnv& env);
// Who is at work on this capsule.
void note_worker(node::CapsuleRecord& record, const Worker& worker);

// A short order (check, freeze, recover) from start to report.
Result<wire::Report> execute(const NodeEnv& env, wire::WorkerOrder order);
Result<wire::Report> finish_short(Worker& worker);

}  // namespace godwit::daemon
