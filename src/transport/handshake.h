// The messages of the handshake and their authentication codes; no I/O. See link.h.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string_view>

#include "transport/link.h"

namespace godwit::transport {

inline constexpr std::size_t nonce_bytes = 32;
inline constexpr std::size_t mac_bytes = 32;
inline constexpr std::size_t hello_bytes = 4 + 1 + 1 + 2 + 4 + nonce_bytes;
inline constexpr std::size_t challenge_bytes = nonce_bytes + mac_bytes;
inline constexpr std::byte accepted_byte{0x6b};

using Hello = std::array<std::byte, hello_bytes>;
using Nonce = std::array<std::byte, nonce_bytes>;
using Mac = std::array<std::byte, mac_bytes>;

struct HelloFields {
  LinkKind kind;
  std::uint32_t index;
};

Nonce random_nonce();
Hello make_hello(LinkKind kind, std::uint32_t index, const Nonce& nonce);
// Errc::invalid unless it is ours, of this version and of a known kind.
Result<HelloFields> parse_hello(const Hello& hello);

// `role` is in the code, so that one side's code cannot be reflected as the other's.
Mac authenticate(const Token& token, std::string_view role, const Hello& hello, const Nonce& nonce);
bool equal_in_constant_time(std::span<const std::byte> a, std::span<const std::byte> b);

inline constexpr std::string_view source_role = "godwit source";
inline constexpr std::string_view target_role = "godwit target";

}  // namespace godwit::transport
