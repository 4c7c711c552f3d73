#include "wire/frame.h"

#include <cstring>

#include "base/ids.h"

namespace godwit::wire {
namespace {

// Fields are little-endian by format, not by accident of the machine.
template <typename T>
void put(std::byte* at, T value) {
  for (std::size_t i = 0; i < sizeof value; ++i) at[i] = static_cast<std::byte>(value >> (8 * i));
}

template <typename T>
T get(const std::byte* at) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof value; ++i)
    value = static_cast<T>(value | static_cast<T>(std::to_integer<T>(at[i]) << (8 * i)));
  return value;
}

static_assert(4 + 2 + 2 + 4 + 4 + 8 + 8 == frame_header_bytes);
static_assert(4 * sizeof(std::uint64_t) == round_counts_bytes);
static_assert(frame_offset_end + frame_run_pages_max * page_bytes > frame_offset_end,
              "the end of a run fits into 64 bits");

Error bad(const FrameHeader& h, const char* why) {
  return make_error(Errc::invalid,
                    "frame type={} flags={:#x} space={:#x} pages={} offset={:#x} "
                    "payload={}: {}",
                    static_cast<unsigned>(h.type), h.flags, h.space, h.pages, h.offset,
                    h.payload_bytes, why);
}

Result<void> check_run(const FrameHeader& h, std::uint32_t pages_max) {
  if (h.pages == 0 || h.pages > pages_max) return bad(h, "page count out of range");
  if (h.offset % page_bytes != 0) return bad(h, "offset within a page");
  if (h.offset >= frame_offset_end || h.pages * page_bytes > frame_offset_end - h.offset)
    return bad(h, "offset out of range");
  return {};
}

Result<void> check(const FrameHeader& h) {
  const bool carries_pages = h.type == FrameType::data || h.type == FrameType::urgent;
  if ((h.flags & ~frame_flag_huge) != 0) return bad(h, "unknown flags");
  if (h.flags != 0 && !carries_pages) return bad(h, "flags on a frame without pages");
  switch (h.type) {
    case FrameType::data:
    case FrameType::urgent:
      TRY(check_run(h, frame_data_pages_max));
      if (h.payload_bytes != h.pages * page_bytes) return bad(h, "payload isn't its pages");
      return {};
    case FrameType::drop:
    case FrameType::pending:
      TRY(check_run(h, frame_run_pages_max));
      if (h.payload_bytes != 0) return bad(h, "payload where none belongs");
      return {};
    case FrameType::request:
      TRY(check_run(h, 1));
      if (h.payload_bytes != 0) return bad(h, "payload where none belongs");
      return {};
    case FrameType::round_end:
      if (h.payload_bytes != round_counts_bytes) return bad(h, "round_end without its counts");
      break;
    case FrameType::round_ack:
      if (h.payload_bytes != 0) return bad(h, "payload where none belongs");
      break;
    default:
      return bad(h, "unknown type");
  }
  if (h.space != 0 || h.pages != 0) return bad(h, "pages on a round marker");
  return {};
}

}  // namespace

FrameHeaderBytes encode(const FrameHeader& h) {
  FrameHeaderBytes out;
  put<std::uint32_t>(&out[0], frame_magic);
  put<std::uint16_t>(&out[4], static_cast<std::uint16_t>(h.type));
  put<std::uint16_t>(&out[6], h.flags);
  put<std::uint32_t>(&out[8], h.space);
  put<std::uint32_t>(&out[12], h.pages);
  put<std::uint64_t>(&out[16], h.offset);
  put<std::uint64_t>(&out[24], h.payload_bytes);
  return out;
}

Result<FrameHeader> decode_header(std::span<const std::byte, frame_header_bytes> in) {
  if (get<std::uint32_t>(&in[0]) != frame_magic)
    return make_error(Errc::invalid, "not a frame: starts with {:#x}", get<std::uint32_t>(&in[0]));
  FrameHeader h;
  h.type = static_cast<FrameType>(get<std::uint16_t>(&in[4]));
  h.flags = get<std::uint16_t>(&in[6]);
  h.space = get<std::uint32_t>(&in[8]);
  h.pages = get<std::uint32_t>(&in[12]);
  h.offset = get<std::uint64_t>(&in[16]);
  h.payload_bytes = get<std::uint64_t>(&in[24]);
  TRY(check(h));
  return h;
}

RoundCountsBytes encode(const RoundCounts& counts) {
  RoundCountsBytes out;
  put<std::uint64_t>(&out[0], counts.frames);
  put<std::uint64_t>(&out[8], counts.data_pages);
  put<std::uint64_t>(&out[16], counts.dropped_pages);
  put<std::uint64_t>(&out[24], counts.pending_pages);
  return out;
}

RoundCounts decode_counts(std::span<const std::byte, round_counts_bytes> in) {
  return {.frames = get<std::uint64_t>(&in[0]),
          .data_pages = get<std::uint64_t>(&in[8]),
          .dropped_pages = get<std::uint64_t>(&in[16]),
          .pending_pages = get<std::uint64_t>(&in[24])};
}

}  // namespace godwit::wire
