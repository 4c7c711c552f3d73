// The bulk format of a data or urgent stream: 32-byte headers, each followed by its payload.
// Byte-exact description: docs/formats/page-frames.md. Pure: no I/O.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"

namespace godwit::wire {

inline constexpr std::uint32_t frame_magic = 0x46505747;  // "GWPF" as bytes in the stream.
inline constexpr std::size_t frame_header_bytes = 32;
inline constexpr std::uint32_t frame_data_pages_max = 256;      // 1 MiB of payload.
inline constexpr std::uint32_t frame_run_pages_max = 1u << 26;  // `drop`, `pending`: 256 GiB.
inline constexpr std::uint64_t frame_offset_end = 1ull << 57;   // Five-level page tables.
inline constexpr std::uint32_t file_space_bit = 0x80000000u;    // Space of a private file.

enum class FrameType : std::uint16_t {
  data = 1,       // Payload: `pages` pages.
  drop = 2,       // These pages read as zero (or as the mapped file) again.
  round_end = 3,  // offset: round. Payload: RoundCounts of this stream in this round.
  request = 4,    // Post-copy, target to source: one page is waited for.
  urgent = 5,     // Post-copy, source to target: `data` in answer to a request.
  pending = 6,    // The target has no valid content of these pages; they come by post-copy.
  round_ack = 7,  // Target to source, offset: round. Everything of it on this stream is in place.
};

// Flags. Unknown ones are refused.
inline constexpr std::uint16_t frame_flag_huge = 1;  // The run lies in a huge page on the source.

struct FrameHeader {
  FrameType type = FrameType::data;
  std::uint16_t flags = 0;
  std::uint32_t space = 0;
  std::uint32_t pages = 0;
  std::uint64_t offset = 0;  // Bytes; a multiple of the page size unless it is a round number.
  std::uint64_t payload_bytes = 0;

  bool operator==(const FrameHeader&) const = default;
};

// What a stream carried since its previous round_end; the receiver compares with what it saw.
struct RoundCounts {
  std::uint64_t frames = 0;  // Without round_end itself.
  std::uint64_t data_pages = 0;
  std::uint64_t dropped_pages = 0;
  std::uint64_t pending_pages = 0;

  bool operator==(const RoundCounts&) const = default;
};
inline constexpr std::size_t round_counts_bytes = 32;

using FrameHeaderBytes = std::array<std::byte, frame_header_bytes>;
using RoundCountsBytes = std::array<std::byte, round_counts_bytes>;

FrameHeaderBytes encode(const FrameHeader& header);
// Fails with Errc::invalid unless every field is within its limit for the type.
Result<FrameHeader> decode_header(std::span<const std::byte, frame_header_bytes> bytes);

RoundCountsBytes encode(const RoundCounts& counts);
RoundCounts decode_counts(std::span<const std::byte, round_counts_bytes> bytes);

}  // namespace godwit::wire
