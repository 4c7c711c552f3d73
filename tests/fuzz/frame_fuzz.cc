// Headers: whatever decodes is within its limits and has one spelling.
#include <cstring>
#include <vector>

#include "wire/frame.h"

using namespace godwit::wire;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < frame_header_bytes) return 0;
  FrameHeaderBytes bytes;
  std::memcpy(bytes.data(), data, bytes.size());
  godwit::Result<FrameHeader> header = decode_header(bytes);
  if (!header.ok()) {
    INVARIANT(header.error().code() == godwit::Errc::invalid);
    return 0;
  }
  INVARIANT(encode(*header) == bytes);
  INVARIANT(header->payload_bytes <= frame_data_pages_max * 4096ull);
  INVARIANT(header->offset < frame_offset_end || header->type == FrameType::round_end ||
            header->type == FrameType::round_ack);
  return 0;
}

std::vector<std::uint8_t> fuzz_seed_input() {
  const FrameHeaderBytes bytes = encode(FrameHeader{
      .type = FrameType::data, .space = 7, .pages = 2, .offset = 8192, .payload_bytes = 8192});
  std::vector<std::uint8_t> out(bytes.size());
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}
