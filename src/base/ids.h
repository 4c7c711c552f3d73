// Identities. None of them is a bare integer, so that none is passed for another.
#pragma once

#include <fmt/format.h>

#include <compare>
#include <cstdint>
#include <functional>
#include <string>

namespace godwit {

template <typename Tag, typename Rep>
struct Id {
  Rep value{};
  auto operator<=>(const Id&) const = default;
};

using NodeId = Id<struct NodeTag, std::string>;            // "n1"; unique in a cluster.
using CapsuleId = Id<struct CapsuleTag, std::string>;      // 16 hex digits; unique for good.
using MigrationId = Id<struct MigrationTag, std::string>;  // 16 hex digits; unique for good.

// Counts the migrations a capsule was offered to; the highest wins (docs/NOTES.md, "Fencing").
using Epoch = Id<struct EpochTag, std::uint64_t>;

// An address in a tracee, not in us: never dereferenced here.
using RemoteAddr = Id<struct RemoteAddrTag, std::uint64_t>;

// Address divided by the page size (4096 bytes on x86-64).
using PageIndex = Id<struct PageIndexTag, std::uint64_t>;

inline constexpr std::uint64_t page_bytes = 4096;
inline constexpr std::uint64_t huge_page_bytes = 2 * 1024 * 1024;

}  // namespace godwit

template <typename Tag, typename Rep>
struct fmt::formatter<godwit::Id<Tag, Rep>> : fmt::formatter<Rep> {
  template <typename Context>
  auto format(const godwit::Id<Tag, Rep>& id, Context& ctx) const {
    return fmt::formatter<Rep>::format(id.value, ctx);
  }
};

template <typename Tag, typename Rep>
struct std::hash<godwit::Id<Tag, Rep>> {
  std::size_t operator()(const godwit::Id<Tag, Rep>& id) const {
    return std::hash<Rep>{}(id.value);
  }
};
