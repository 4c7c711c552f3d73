// One data or urgent stream, sending side: frames are collected and leave in one sendmsg(2). A send
// for each 4K run cost 244 ms a GiB where batches cost nothing measurable.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <deque>
#include <span>
#include <vector>

#include "memory/types.h"
#include "wire/frame.h"

namespace godwit::memory {

class StreamWriter {
 public:
  explicit StreamWriter(int fd) : fd_(fd) {}

  // The data stays the caller's, untouched until flush().
  void data(SpaceId space, const PageRun& run, const std::byte* from,
            wire::FrameType type = wire::FrameType::data);
  void run(wire::FrameType type, SpaceId space, const PageRun& run);  // drop, pending, request
  Result<void> flush();
  // round_end with the counts since the last one; flushes.
  Result<void> end_round(std::uint64_t round);

  void shut_down() const;  // By any thread: what waits to send ends with an error.

  std::uint64_t bytes_sent() const { return bytes_sent_; }
  std::size_t frames_waiting() const { return headers_.size(); }

 private:
  void header(const wire::FrameHeader& header);

  int fd_;
  std::deque<wire::FrameHeaderBytes> headers_;  // Stable addresses.
  std::vector<iovec> iovecs_;
  wire::RoundCounts counts_;
  std::uint64_t bytes_sent_ = 0;
};

}  // namespace godwit::memory
