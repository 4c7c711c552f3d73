// Messages between godwitd and a worker: a u32 little-endian length, then the protobuf.
#pragma once

#include <google/protobuf/message_lite.h>

#include <cstdint>
#include <mutex>

#include "base/result.h"
#include "base/unique_fd.h"

namespace godwit::migrate {

// Descriptor at which a worker finds its end of the socketpair.
inline constexpr int worker_fd = 3;

// Threads: sending and receiving may happen in different threads, each by one at a time.
class WorkerChannel {
 public:
  static constexpr std::uint32_t message_bytes_max = 16u << 20;

  explicit WorkerChannel(UniqueFd fd) : fd_(std::move(fd)) {}

  Result<void> send(const google::protobuf::MessageLite& message);
  // Errc::peer_lost at the end; Errc::timeout after `timeout_ms` (negative: no limit) of silence.
  Result<void> receive(google::protobuf::MessageLite& message, std::int64_t timeout_ms = -1);
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
};

}  // namespace godwit::migrate
