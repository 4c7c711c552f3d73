// The first bytes that anybody who reaches the port of a migration can send.
#include <cstddef>
#include <cstring>
#include <vector>

#include "transport/handshake.h"

using namespace godwit;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  transport::Hello hello{};
  if (size < hello.size()) return 0;
  std::memcpy(hello.data(), data, hello.size());
  Result<transport::HelloFields> fields = transport::parse_hello(hello);
  if (!fields.ok()) {
    INVARIANT(fields.error().code() == Errc::invalid);
    return 0;
  }
  transport::Nonce nonce;
  std::memcpy(nonce.data(), hello.data() + hello.size() - nonce.size(), nonce.size());
  INVARIANT(transport::make_hello(fields->kind, fields->index, nonce) == hello);  // One spelling.
  return 0;
}

std::vector<std::uint8_t> fuzz_seed_input() {
  const transport::Hello hello = transport::make_hello(transport::LinkKind::data, 1, {});
  std::vector<std::uint8_t> out(hello.size());
  std::memcpy(out.data(), hello.data(), hello.size());
  return out;
}
