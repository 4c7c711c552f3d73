#include "transport/handshake.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <cstring>
#include <vector>

namespace godwit::transport {
namespace {

constexpr unsigned char hello_magic[4] = {'G', 'W', 'L', 'K'};
constexpr unsigned char hello_version = 1;
constexpr std::uint32_t index_max = 63;  // Far more streams than help.

void fill_random(std::span<std::byte> out) {
  ssize_t n = ::getrandom(out.data(), out.size(), 0);
  INVARIANT(n == static_cast<ssize_t>(out.size()), "getrandom = {}", n);
}

}  // namespace

Token random_token() {
  Token token;
  fill_random(token);
  return token;
}

Result<Token> token_from_bytes(std::string_view bytes) {
  Token token;
  if (bytes.size() != token.size())
    return make_error(Errc::invalid, "a token has {} bytes, not {}", token.size(), bytes.size());
  std::memcpy(token.data(), bytes.data(), bytes.size());
  return token;
}

Nonce random_nonce() {
  Nonce nonce;
  fill_random(nonce);
  return nonce;
}

Hello make_hello(LinkKind kind, std::uint32_t index, const Nonce& nonce) {
  Hello hello{};
  std::memcpy(&hello[0], hello_magic, 4);
  hello[4] = std::byte{hello_version};
  hello[5] = static_cast<std::byte>(kind);
  for (std::size_t i = 0; i < 4; ++i) hello[8 + i] = static_cast<std::byte>(index >> (8 * i));
  std::memcpy(&hello[12], nonce.data(), nonce.size());
  return hello;
}

Result<HelloFields> parse_hello(const Hello& hello) {
  if (std::memcmp(&hello[0], hello_magic, 4) != 0)
    return make_error(Errc::invalid, "not a godwit link");
  if (hello[4] != std::byte{hello_version} || hello[6] != std::byte{0} || hello[7] != std::byte{0})
    return make_error(Errc::invalid, "link version {} is not spoken here",
                      std::to_integer<int>(hello[4]));
  HelloFields fields{.kind = static_cast<LinkKind>(hello[5]), .index = 0};
  for (std::size_t i = 0; i < 4; ++i)
    fields.index |= std::to_integer<std::uint32_t>(hello[8 + i]) << (8 * i);
  if (fields.kind != LinkKind::control && fields.kind != LinkKind::data &&
      fields.kind != LinkKind::urgent)
    return make_error(Errc::invalid, "unknown kind of link {}", std::to_integer<int>(hello[5]));
  if (fields.index > index_max) return make_error(Errc::invalid, "stream {}", fields.index);
  return fields;
}

Mac authenticate(const Token& token, std::string_view role, const Hello& hello,
                 const Nonce& nonce) {
  std::vector<unsigned char> text;
  auto append = [&text](const void* data, std::size_t size) {
    const auto* p = static_cast<const unsigned char*>(data);
    text.insert(text.end(), p, p + size);
  };
  append(role.data(), role.size());
  append(hello.data(), hello.size());
  append(nonce.data(), nonce.size());
  Mac mac;
  unsigned size = 0;
  const unsigned char* done =
      ::HMAC(::EVP_sha256(), token.data(), static_cast<int>(token.size()), text.data(), text.size(),
             reinterpret_cast<unsigned char*>(mac.data()), &size);
  INVARIANT(done != nullptr && size == mac.size(), "HMAC-SHA256 gave {} bytes", size);
  return mac;
}

bool equal_in_constant_time(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && ::CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace godwit::transport
