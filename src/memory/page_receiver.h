// One data stream, receiving side: a thread that receives and a thread that writes, with a few
// buffers between them, so that the kernel's TCP work and the target's page faults take place on
// two processors at once.
#pragma once

#include <array>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "memory/space_writer.h"
#include "memory/types.h"
#include "wire/frame.h"

namespace godwit::memory {

// Called by the writing thread of each stream. An error ends the stream.
class FrameSink {
 public:
  virtual ~FrameSink() = default;
  virtual Result<void> on_data(SpaceId space, std::span<const ArrivedRun> runs) = 0;
  virtual Result<void> on_run(wire::FrameType type, SpaceId space, const PageRun& run) = 0;
  virtual Result<void> on_round_end(std::uint64_t round, const wire::RoundCounts& counts,
                                    std::uint64_t bytes) = 0;
  virtual void on_failure(Error error) = 0;  // Once, at the end of the stream.
};

// Whole frames out of a stream, as many as are there, payloads page-aligned where they are large.
class FrameBuffer {
 public:
  struct Frame {
    wire::FrameHeader header;
    const std::byte* payload;
  };
  FrameBuffer();
  // Waits for at least one frame. `carry`: the beginning of the next frame, taken from here to the
  // next buffer.
  Result<void> fill(int fd, std::vector<std::byte>& carry);
  const std::vector<Frame>& frames() const { return frames_; }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  std::byte* begin() const;

  std::unique_ptr<std::byte[], Free> memory_;
  std::vector<Frame> frames_;
};

class PageReceiver {
 public:
  PageReceiver(int fd, FrameSink& sink);  // Starts.
  ~PageReceiver();                        // Shuts the socket down and joins.
  PageReceiver(const PageReceiver&) = delete;
  PageReceiver& operator=(const PageReceiver&) = delete;
  int fd() const { return fd_; }

 private:
  static constexpr std::size_t buffers = 3;

  void receive();
  void write();
  Result<void> consume(const FrameBuffer& buffer);
  Result<void> end_round(const FrameBuffer::Frame& frame);
  void stop();

  const int fd_;
  FrameSink& sink_;
  std::array<FrameBuffer, buffers> ring_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t filled_ = 0;  // Buffers given to the writer so far...
  std::size_t taken_ = 0;   // ... and given back.
  bool stopped_ = false;
  std::optional<Error> receive_error_;
  wire::RoundCounts counts_;
  std::uint64_t bytes_ = 0;
  std::thread receiving_;
  std::thread writing_;
};

}  // namespace godwit::memory
