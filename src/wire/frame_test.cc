#include "wire/frame.h"

#include <gtest/gtest.h>

#include <random>

#include "base/ids.h"

namespace godwit::wire {
namespace {

FrameHeader data_frame() {
  return {.type = FrameType::data,
          .flags = frame_flag_huge,
          .space = 0x01020304,
          .pages = 256,
          .offset = 0x7f1122334000,
          .payload_bytes = 256 * page_bytes};
}

TEST(Frame, HasTheBytesOfItsFormat) {
  const unsigned char golden[frame_header_bytes] = {
      'G',  'W',  'P',  'F',  1,    0,    1, 0,   // magic, type, flags
      0x04, 0x03, 0x02, 0x01, 0x00, 0x01, 0, 0,   // space, pages
      0x00, 0x40, 0x33, 0x22, 0x11, 0x7f, 0, 0,   // offset
      0x00, 0x00, 0x10, 0x00, 0,    0,    0, 0};  // payload_bytes
  FrameHeaderBytes bytes = encode(data_frame());
  for (std::size_t i = 0; i < sizeof golden; ++i)
    EXPECT_EQ(std::to_integer<int>(bytes[i]), golden[i]) << "byte " << i;
}

TEST(Frame, CountsHaveTheBytesOfTheirFormat) {
  RoundCountsBytes bytes = encode(RoundCounts{1, 0x0203, 4, 0x0500000000000000});
  EXPECT_EQ(std::to_integer<int>(bytes[0]), 1);
  EXPECT_EQ(std::to_integer<int>(bytes[8]), 3);
  EXPECT_EQ(std::to_integer<int>(bytes[9]), 2);
  EXPECT_EQ(std::to_integer<int>(bytes[16]), 4);
  EXPECT_EQ(std::to_integer<int>(bytes[31]), 5);
}

TEST(Frame, EveryTypeComesBackAsItWent) {
  const FrameHeader headers[] = {
      data_frame(),
      {.type = FrameType::urgent, .space = 7, .pages = 1, .payload_bytes = page_bytes},
      {.type = FrameType::drop, .space = 7, .pages = frame_run_pages_max, .offset = page_bytes},
      {.type = FrameType::pending, .space = file_space_bit | 7, .pages = 3},
      {.type = FrameType::request, .space = 7, .pages = 1, .offset = page_bytes},
      {.type = FrameType::round_end, .offset = 3, .payload_bytes = round_counts_bytes},
      {.type = FrameType::round_ack, .offset = 3}};
  for (const FrameHeader& header : headers) {
    Result<FrameHeader> back = decode_header(encode(header));
    ASSERT_TRUE(back.ok()) << back.error().what();
    EXPECT_EQ(*back, header);
  }
  RoundCounts counts{~0ull, 1, 2, 3};
  EXPECT_EQ(decode_counts(encode(counts)), counts);
}

TEST(Frame, RefusesWhatIsOutOfItsLimits) {
  auto refused = [](auto change) {
    FrameHeader header = data_frame();
    change(header);
    Result<FrameHeader> result = decode_header(encode(header));
    return !result.ok() && result.error().code() == Errc::invalid;
  };
  EXPECT_TRUE(refused([](FrameHeader& h) { h.type = static_cast<FrameType>(0); }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.type = static_cast<FrameType>(8); }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.flags = 2; }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.pages = 0, h.payload_bytes = 0; }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.pages = 257, h.payload_bytes = 257 * page_bytes; }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.payload_bytes -= 1; }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.payload_bytes = ~0ull; }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.offset += 1; }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.offset = frame_offset_end; }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.offset = frame_offset_end - page_bytes; }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.offset = ~(page_bytes - 1); }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.type = FrameType::drop; }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.type = FrameType::request; }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.type = FrameType::round_end; }));
  EXPECT_TRUE(refused([](FrameHeader& h) { h.type = FrameType::round_ack, h.flags = 0; }));
  FrameHeaderBytes wrong_magic = encode(data_frame());
  wrong_magic[0] = std::byte{0};
  EXPECT_FALSE(decode_header(wrong_magic).ok());
}

// Whatever decodes encodes to the same bytes: there is one spelling of each header.
TEST(Frame, RandomBytesAreRefusedOrCanonical) {
  std::mt19937_64 random(20251120);
  int accepted = 0;
  for (int i = 0; i < 200'000; ++i) {
    FrameHeaderBytes bytes = encode(data_frame());
    for (int flips = 1 + static_cast<int>(random() % 3); flips > 0; --flips)
      bytes[random() % bytes.size()] = static_cast<std::byte>(random() % 4 == 0 ? random() : 1);
    Result<FrameHeader> header = decode_header(bytes);
    if (!header.ok()) continue;
    ++accepted;
    ASSERT_EQ(encode(*header), bytes);
    ASSERT_LE(header->payload_bytes, frame_data_pages_max * page_bytes);
  }
  EXPECT_GT(accepted, 0);
}

}  // namespace
}  // namespace godwit::wire
