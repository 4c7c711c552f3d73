// The source's links to the target, and the messages that pass on the control link.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "transport/link.h"
#include "wire/migrate.pb.h"
#include "wire/worker.pb.h"

namespace godwit::migrate {

// How long the target may take for what it does before the freeze. Nothing waits meanwhile but us.
constexpr std::int64_t prepare_ms_max = 120'000;
// A limit for what it is told.
constexpr std::int64_t told_ms_max = 60'000;

// One thread, but for `streams`, whose sockets others may watch.
class TargetLinks {
 public:
  // The target listens already, as the order says where.
  Result<void> connect(const wire::SourceOrder& order);

  Result<void> send(const wire::ToTarget& message) { return control_.send(message); }
  // The next message must be `which`; a `failed` one is the target's reason, as an error: refused
  // where it refuses, else peer_lost.
  Result<void> expect(wire::ToSource& reply, wire::ToSource::MessageCase which,
                      std::int64_t timeout_ms);
  // A link that broke says only that the target gave up; why comes over the control link. The
  // answer is what is to be said instead of `error`.
  Error hear_out(Error error);
  // Best effort: if it can't hear us, the end of the link tells it as much.
  void say_that_we_stay(const Error& error);
  // The clocks of `pid`, a process of the capsule, against the target's, while everything still
  // runs: so the target can set them for good, whatever later messages take.
  Result<void> compare_clocks(pid_t pid);

  std::int64_t round_trip_us() const { return transport::round_trip_us(control_.fd()); }
  int urgent() const { return urgent_.fd(); }
  std::span<const int> streams() const { return streams_; }

 private:
  transport::Link control_, urgent_;
  std::vector<transport::Link> data_;
  std::vector<int> streams_;  // Of data_.
};

}  // namespace godwit::migrate
