#include "memory/stream_writer.h"

#include <algorithm>

#include "base/ids.h"
#include "sys/memory_io.h"

namespace godwit::memory {

void StreamWriter::header(const wire::FrameHeader& header) {
  headers_.push_back(wire::encode(header));
  iovecs_.push_back({.iov_base = headers_.back().data(), .iov_len = wire::frame_header_bytes});
  bytes_sent_ += wire::frame_header_bytes + header.payload_bytes;
  ++counts_.frames;
}

void StreamWriter::data(SpaceId space, const PageRun& run, const std::byte* from,
                        wire::FrameType type) {
  INVARIANT(run.pages <= wire::frame_data_pages_max, "{} pages in a frame", run.pages);
  const std::uint64_t bytes = run.pages * page_bytes;
  header({.type = type,
          .flags = run.huge ? wire::frame_flag_huge : std::uint16_t{0},
          .space = space,
          .pages = static_cast<std::uint32_t>(run.pages),
          .offset = run.page * page_bytes,
          .payload_bytes = bytes});
  // sendmsg(2) only reads.
  iovecs_.push_back({.iov_base = const_cast<std::byte*>(from), .iov_len = bytes});
  counts_.data_pages += run.pages;
}

void StreamWriter::run(wire::FrameType type, SpaceId space, const PageRun& run) {
  for (std::uint64_t page = run.page; page < run.end();) {
    const std::uint64_t pages =
        std::min<std::uint64_t>(run.end() - page, wire::frame_run_pages_max);
    header({.type = type,
            .flags = 0,
            .space = space,
            .pages = static_cast<std::uint32_t>(pages),
            .offset = page * page_bytes,
            .payload_bytes = 0});
    if (type == wire::FrameType::drop) counts_.dropped_pages += pages;
    if (type == wire::FrameType::pending) counts_.pending_pages += pages;
    page += pages;
  }
}

void StreamWriter::shut_down() const { sys::shut_down(fd_); }

Result<void> StreamWriter::flush() {
  Result<void> sent = sys::send_vector(fd_, iovecs_);
  iovecs_.clear();
  headers_.clear();
  return sent;
}

Result<void> StreamWriter::end_round(std::uint64_t round) {
  const wire::RoundCountsBytes payload = wire::encode(counts_);
  header({.type = wire::FrameType::round_end,
          .flags = 0,
          .space = 0,
          .pages = 0,
          .offset = round,
          .payload_bytes = payload.size()});
  iovecs_.push_back(
      {.iov_base = const_cast<std::byte*>(payload.data()), .iov_len = payload.size()});
  Result<void> sent = flush();
  counts_ = {};
  return sent;
}

}  // namespace godwit::memory
