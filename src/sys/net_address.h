// Addresses of links and of IPv4, as values: parsed strictly, printed as people write them.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace godwit::sys {

struct Mac {
  std::array<std::uint8_t, 6> bytes{};
  auto operator<=>(const Mac&) const = default;
};
std::string to_string(const Mac& mac);  // "02:aa:bb:cc:dd:ee"
Result<Mac> parse_mac(std::string_view text);

struct Ipv4 {
  std::uint32_t value = 0;  // Host byte order.
  auto operator<=>(const Ipv4&) const = default;
};
std::string to_string(Ipv4 address);
Result<Ipv4> parse_ipv4(std::string_view text);

struct Ipv4Prefix {
  Ipv4 address;     // As given: the host's address, or the network's.
  int length = 32;  // 0 to 32
  auto operator<=>(const Ipv4Prefix&) const = default;

  Ipv4 network() const;
  bool contains(Ipv4 other) const;
  bool overlaps(const Ipv4Prefix& other) const;
};
std::string to_string(const Ipv4Prefix& prefix);  // "10.1.0.2/16"
Result<Ipv4Prefix> parse_ipv4_prefix(std::string_view text);

}  // namespace godwit::sys
