// What both sides of a migration keep to.
#pragma once

#include <cstdint>

namespace godwit::migrate {

// Of data, where an order doesn't say how many.
constexpr std::uint32_t default_streams = 2;
// The other side connects at once; a stranger can't, for want of the token.
constexpr std::int64_t connect_ms_max = 60'000;
constexpr std::int64_t drain_ms_max = 24 * 3'600'000;
// How long one side listens for the reason why the other broke off. It cleans up before it tells.
constexpr std::int64_t last_words_ms_max = 5'000;

}  // namespace godwit::migrate
