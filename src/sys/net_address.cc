#include "sys/net_address.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <optional>

namespace godwit::sys {
namespace {

std::uint32_t mask_of(int length) { return length == 0 ? 0 : ~0U << (32 - length); }

// "a.b.c.d", nothing before or after; inet_pton is strict about it.
std::optional<std::uint32_t> dotted(std::string_view text) {
  in_addr raw{};
  if (::inet_pton(AF_INET, std::string(text).c_str(), &raw) != 1) return std::nullopt;
  return ntohl(raw.s_addr);
}

}  // namespace

std::string to_string(const Mac& mac) { return fmt::format("{:02x}", fmt::join(mac.bytes, ":")); }

Result<Mac> parse_mac(std::string_view text) {
  Mac mac;
  bool good = text.size() == 17;
  for (std::size_t i = 0; good && i < 6; ++i) {
    const char* at = text.data() + 3 * i;
    auto [end, error] = std::from_chars(at, at + 2, mac.bytes[i], 16);
    good = error == std::errc{} && end == at + 2 && (i == 5 || *end == ':');
  }
  if (!good) return make_error(Errc::invalid, "\"{}\" is no MAC address", text);
  return mac;
}

std::string to_string(Ipv4 address) {
  return fmt::format("{}.{}.{}.{}", address.value >> 24, address.value >> 16 & 255,
                     address.value >> 8 & 255, address.value & 255);
}

Result<Ipv4> parse_ipv4(std::string_view text) {
  if (auto value = dotted(text)) return Ipv4{*value};
  return make_error(Errc::invalid, "\"{}\" is no IPv4 address", text);
}

Ipv4 Ipv4Prefix::network() const { return Ipv4{address.value & mask_of(length)}; }

bool Ipv4Prefix::contains(Ipv4 other) const {
  return (other.value & mask_of(length)) == network().value;
}

bool Ipv4Prefix::overlaps(const Ipv4Prefix& other) const {
  std::uint32_t mask = mask_of(std::min(length, other.length));
  return (address.value & mask) == (other.address.value & mask);
}

std::string to_string(const Ipv4Prefix& prefix) {
  return fmt::format("{}/{}", to_string(prefix.address), prefix.length);
}

Result<Ipv4Prefix> parse_ipv4_prefix(std::string_view text) {
  std::size_t slash = text.find('/');
  Ipv4Prefix prefix;
  auto value = dotted(text.substr(0, slash));
  bool good = value.has_value();
  if (good) prefix.address.value = *value;
  if (good && slash != std::string_view::npos) {
    const char* last = text.data() + text.size();
    auto [end, error] = std::from_chars(text.data() + slash + 1, last, prefix.length);
    good = error == std::errc{} && end == last && prefix.length >= 0 && prefix.length <= 32;
  }
  if (!good) return make_error(Errc::invalid, "\"{}\" is no IPv4 prefix", text);
  return prefix;
}

}  // namespace godwit::sys
