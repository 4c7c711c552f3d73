// Compares this node's clocks with another's, by as many questions as it takes.
#pragma once

#include <functional>

#include "base/result.h"
#include "migrate/clock_difference.h"
#include "wire/migrate.pb.h"

namespace godwit::migrate {

struct ClockDifferences {
  ClockDifference monotonic, boottime;
};

// `ask` gets what the other node's clocks show now. A few questions are enough on an idle pair of
// nodes (0.2 ms in all); on a busy one most of them wait for a processor, and some don't: at most
// 64, for about 20 ms.
Result<ClockDifferences> probe_clocks(const std::function<Result<wire::ClockReply>()>& ask);

}  // namespace godwit::migrate
