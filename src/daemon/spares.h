// What a migration needs and is made before anybody asks: workers that are executed and wait for an
// order (15 ms: loading, linking, static initializers), shells without a capsule (15 ms:
// namespaces, control groups, init, a link with a carrier). And what it leaves behind and is
// removed after everybody has his answer: retired shells (30 ms).
//
// Nothing here is a promise. A spare that died is replaced when it is taken, an empty stock makes
// what is asked for on the spot. Spares are nobody's: a spare worker ends when its daemon does, a
// spare shell that the next daemon finds is removed as anything without a record (Host::adopt).
//
// Stock is made in quiet moments only, since it costs what it saves: when a migration or a start
// has ended, or when nothing was taken for a while.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "base/node_env.h"
#include "daemon/worker.h"

namespace godwit::daemon {

class Spares {
 public:
  // Two moves at the same time, of one of each side, find everything ready.
  static constexpr std::size_t workers_kept = 2;
  static constexpr std::size_t shells_kept = 2;

  // Borrows `env`. Stocks up from its own thread, from the first `restock` on: before, the shells
  // that are here are another daemon's.
  explicit Spares(const NodeEnv& env);
  ~Spares();
  Spares(const Spares&) = delete;
  Spares& operator=(const Spares&) = delete;

  // A worker that has its order. `announce` is called before it gets it, to record who will be at
  // work; again with another one, if the first was a spare that had died.
  using Announce = std::function<Result<void>(const Worker&)>;
  Result<std::unique_ptr<Worker>> start(wire::WorkerOrder order, const Announce& announce = {});
  Result<wire::Report> execute(wire::WorkerOrder order);  // A short one, from start to report.
  // The name of a spare shell for Shell::create; empty if there is none. Whoever takes it sees to
  // its end: Shell::destroy does no harm to one that has become a capsule.
  CapsuleId take_shell();
  // Something has ended: a good moment.
  void restock();

 private:
  void keep_stocked();
  bool stock_one();

  const NodeEnv& env_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Worker>> workers_;
  std::deque<CapsuleId> shells_;
  std::int64_t taken_at_us_ = 0;
  bool wanted_ = false;
  bool stop_ = false;
  std::thread thread_;  // Last: uses all of the above.
};

}  // namespace godwit::daemon
