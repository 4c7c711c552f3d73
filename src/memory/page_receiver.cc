#include "memory/page_receiver.h"

#include <cstdlib>
#include <cstring>

#include "base/ids.h"
#include "base/thread_name.h"
#include "sys/memory_io.h"
#include "sys/thread_priority.h"

namespace godwit::memory {
namespace {

// A receive asks for so much when it doesn't know what comes; the rest of a large frame is then
// received exactly, so that the next one starts in a fresh buffer, aligned.
constexpr std::size_t step_bytes = 128 * 1024;
constexpr std::size_t handover_bytes = 256 * 1024;
constexpr std::size_t lead_in = page_bytes - wire::frame_header_bytes;
constexpr std::size_t capacity = wire::frame_header_bytes +
                                 wire::frame_data_pages_max * page_bytes + step_bytes +
                                 handover_bytes;

}  // namespace

void FrameBuffer::Free::operator()(std::byte* p) const { std::free(p); }

FrameBuffer::FrameBuffer() {
  constexpr std::size_t size = (lead_in + capacity + page_bytes - 1) / page_bytes * page_bytes;
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(page_bytes, size)));
  INVARIANT(memory_ != nullptr, "no memory for a receive buffer");
}

// The payload of the first frame is page-aligned.
std::byte* FrameBuffer::begin() const { return memory_.get() + lead_in; }

Result<void> FrameBuffer::fill(int fd, std::vector<std::byte>& carry) {
  frames_.clear();
  std::byte* const base = begin();
  std::size_t have = carry.size();
  std::copy(carry.begin(), carry.end(), base);
  carry.clear();
  std::size_t at = 0;
  while (true) {
    while (have - at >= wire::frame_header_bytes) {
      const wire::FrameHeader header =
          TRY(wire::decode_header(std::span<const std::byte, wire::frame_header_bytes>(
              base + at, wire::frame_header_bytes)));
      const std::size_t end = at + wire::frame_header_bytes + header.payload_bytes;
      if (end > capacity) break;
      if (end > have) {
        TRY(sys::receive_exact(fd, {base + have, end - have}));
        have = end;
      }
      frames_.push_back({header, base + at + wire::frame_header_bytes});
      at = end;
    }
    const bool full = at >= handover_bytes || have - at >= wire::frame_header_bytes;
    if (!full) {
      const std::size_t room = std::min(step_bytes, capacity - have);
      const std::size_t n = TRY(sys::receive_available(fd, {base + have, room}));
      have += n;
      if (n != 0) continue;
      if (frames_.empty()) {
        have += TRY(sys::receive_some(fd, {base + have, room}, 1));
        continue;
      }
    }
    carry.assign(base + at, base + have);
    return {};
  }
}

PageReceiver::PageReceiver(int fd, FrameSink& sink) : fd_(fd), sink_(sink) {
  receiving_ = std::thread([this] { receive(); });
  writing_ = std::thread([this] { write(); });
}

PageReceiver::~PageReceiver() {
  sys::shutdown_socket(fd_);
  stop();
  receiving_.join();
  writing_.join();
}

void PageReceiver::stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

void PageReceiver::receive() {
  name_thread("godwit-receive");
  sys::shorten_thread_slice();
  std::vector<std::byte> carry;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopped_ || filled_ - taken_ < buffers; });
      if (stopped_) return;
    }
    Result<void> filled = ring_[filled_ % buffers].fill(fd_, carry);
    std::lock_guard lock(mutex_);
    if (!filled.ok()) {
      receive_error_ = std::move(filled).error();
      changed_.notify_all();
      return;
    }
    ++filled_;
    changed_.notify_all();
  }
}

void PageReceiver::write() {
  name_thread("godwit-write");
  sys::shorten_thread_slice();
  while (true) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopped_ || filled_ != taken_ || receive_error_; });
      if (stopped_) return;
      // What came before the end of the stream is written first.
      if (filled_ == taken_) {
        Error error = std::move(*receive_error_);
        stopped_ = true;
        lock.unlock();
        sys::shutdown_socket(fd_);  // It may be what came that was wrong: the peer is told.
        return sink_.on_failure(std::move(error));
      }
    }
    Result<void> done = consume(ring_[taken_ % buffers]);
    if (!done.ok()) {
      stop();
      // The peer learns at once; so does our receiving thread.
      sys::shutdown_socket(fd_);
      return sink_.on_failure(std::move(done).error());
    }
    std::lock_guard lock(mutex_);
    ++taken_;
    changed_.notify_all();
  }
}

// Consecutive data frames of one space are written together.
Result<void> PageReceiver::consume(const FrameBuffer& buffer) {
  std::vector<ArrivedRun> together;
  SpaceId space = 0;
  auto flush = [&]() -> Result<void> {
    if (together.empty()) return {};
    Result<void> done = sink_.on_data(space, together);
    together.clear();
    return done;
  };
  for (const FrameBuffer::Frame& frame : buffer.frames()) {
    const wire::FrameHeader& h = frame.header;
    bytes_ += wire::frame_header_bytes + h.payload_bytes;
    const PageRun run{.page = h.offset / page_bytes,
                      .pages = h.pages,
                      .huge = (h.flags & wire::frame_flag_huge) != 0};
    if (h.type == wire::FrameType::data) {
      if (h.space != space) TRY(flush());
      space = h.space;
      together.push_back({.run = run, .data = frame.payload});
      counts_.data_pages += h.pages;
      ++counts_.frames;
      continue;
    }
    TRY(flush());
    switch (h.type) {
      case wire::FrameType::drop:
        counts_.dropped_pages += h.pages;
        break;
      case wire::FrameType::pending:
        counts_.pending_pages += h.pages;
        break;
      case wire::FrameType::round_end:
        TRY(end_round(frame));
        continue;
      default:
        return make_error(Errc::invalid, "frame type {} on a data stream",
                          static_cast<int>(h.type));
    }
    ++counts_.frames;
    TRY(sink_.on_run(h.type, h.space, run));
  }
  return flush();
}

Result<void> PageReceiver::end_round(const FrameBuffer::Frame& frame) {
  const wire::RoundCounts announced =
      wire::decode_counts(std::span<const std::byte, wire::round_counts_bytes>(
          frame.payload, wire::round_counts_bytes));
  if (announced != counts_)
    return make_error(Errc::invalid,
                      "round {}: {} frames, {} pages came where {} and {} were announced",
                      frame.header.offset, counts_.frames, counts_.data_pages, announced.frames,
                      announced.data_pages);
  TRY(sink_.on_round_end(frame.header.offset, counts_, bytes_));
  counts_ = {};
  bytes_ = 0;
  return {};
}

}  // namespace godwit::memory
