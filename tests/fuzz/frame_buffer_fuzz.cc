// A whole stream, as the receiving thread takes it apart: every frame lies within its buffer, and
// the end of the stream or an error comes in bounded time.
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "memory/page_receiver.h"

using namespace godwit;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > 64 * 1024) return 0;  // What the socket takes without a reader.
  int ends[2];
  INVARIANT(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  UniqueFd in(ends[0]);
  UniqueFd out(ends[1]);
  INVARIANT(size == 0 || ::send(out.get(), data, size, 0) == static_cast<ssize_t>(size));
  out.reset();
  static memory::FrameBuffer buffer;
  std::vector<std::byte> carry;
  std::size_t consumed = 0;
  while (true) {
    Result<void> filled = buffer.fill(in.get(), carry);
    if (!filled.ok()) break;
    INVARIANT(!buffer.frames().empty());
    for (const auto& frame : buffer.frames()) {
      unsigned sum = 0;  // Touches the payload, for the sanitizer to see.
      for (std::size_t i = 0; i < frame.header.payload_bytes; i += 64)
        sum += std::to_integer<unsigned>(frame.payload[i]);
      INVARIANT(sum <= frame.header.payload_bytes * 4);
      consumed += wire::frame_header_bytes + frame.header.payload_bytes;
    }
    INVARIANT(consumed <= size);
  }
  return 0;
}

std::vector<std::uint8_t> fuzz_seed_input() {
  std::vector<std::uint8_t> out;
  auto frame = [&out](wire::FrameType type, std::uint32_t pages, std::uint64_t payload) {
    const auto bytes = wire::encode(wire::FrameHeader{
        .type = type, .space = 7, .pages = pages, .offset = 4096, .payload_bytes = payload});
    const auto* p = reinterpret_cast<const std::uint8_t*>(bytes.data());
    out.insert(out.end(), p, p + bytes.size());
    out.resize(out.size() + payload, 0x5a);
  };
  frame(wire::FrameType::drop, 9, 0);
  frame(wire::FrameType::data, 2, 8192);
  frame(wire::FrameType::pending, 1, 0);
  frame(wire::FrameType::data, 1, 4096);
  return out;
}
