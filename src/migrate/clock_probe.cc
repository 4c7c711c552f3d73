#include "migrate/clock_probe.h"

#include "base/clock.h"
#include "base/log.h"

namespace godwit::migrate {
namespace {

constexpr int probes_min = 4;
constexpr int probes_max = 64;
constexpr std::int64_t width_ns_wanted = 40'000;
constexpr std::int64_t patience_ns = 20'000'000;

}  // namespace

Result<ClockDifferences> probe_clocks(const std::function<Result<wire::ClockReply>()>& ask) {
  ClockDifferences out;
  const std::int64_t began_ns = monotonic_ns();
  for (int probe = 0; probe < probes_max; ++probe) {
    const std::int64_t sent_ns = monotonic_ns(), sent_boottime_ns = boottime_ns();
    const wire::ClockReply reply = TRY(ask());
    const std::int64_t received_ns = monotonic_ns(), received_boottime_ns = boottime_ns();
    out.monotonic.add(sent_ns, reply.monotonic_ns(), received_ns);
    out.boottime.add(sent_boottime_ns, reply.boottime_ns(), received_boottime_ns);
    const bool close = out.monotonic.width_ns() <= width_ns_wanted;
    if (probe + 1 >= probes_min && (close || received_ns - began_ns > patience_ns)) break;
  }
  LOG(debug, "clocks compared to within {} ns", out.monotonic.width_ns());
  return out;
}

}  // namespace godwit::migrate
