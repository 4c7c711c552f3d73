#include "migrate/round_policy.h"

namespace godwit::migrate {

RoundPolicy::RoundPolicy(wire::Mode mode, std::int64_t downtime_target_us, bool tracker_works,
                         bool postcopy_works)
    : mode_(mode),
      target_us_(downtime_target_us > 0 ? downtime_target_us : default_downtime_target_us),
      tracker_works_(tracker_works),
      postcopy_works_(postcopy_works) {}

RoundDecision RoundPolicy::first() const {
  switch (mode_) {
    case wire::STOP:
      return {Next::freeze, "stop-and-copy was asked for"};
    case wire::POSTCOPY:
      return {Next::freeze_for_postcopy, "post-copy was asked for"};
    default:
      break;
  }
  if (!tracker_works_) return give_up_rounds("this kernel cannot track which pages are written");
  return {Next::another_round, "first round"};
}

RoundDecision RoundPolicy::give_up_rounds(const char* reason) const {
  bool may_postcopy = mode_ == wire::AUTO || mode_ == wire::HYBRID;
  if (may_postcopy && postcopy_works_) return {Next::freeze_for_postcopy, reason};
  return {Next::freeze, reason};
}

RoundDecision RoundPolicy::after(const RoundResult& round, std::uint64_t dirty_bytes) {
  ++rounds_;
  std::int64_t us = round.us > 0 ? round.us : 1;
  if (round.bytes >= bandwidth_sample_bytes || bytes_per_s_ == 0)
    bytes_per_s_ = round.bytes * 1'000'000 / static_cast<std::uint64_t>(us) + 1;
  dirty_bytes_per_s_ = dirty_bytes * 1'000'000 / static_cast<std::uint64_t>(us);

  if (mode_ == wire::HYBRID) return {Next::freeze_for_postcopy, "one round, then post-copy"};

  auto rest_us = static_cast<std::int64_t>(dirty_bytes * 1'000'000 / bytes_per_s_);
  // Half the target is left for everything in the freeze that isn't pages.
  if (rest_us <= target_us_ / 2) return {Next::freeze, "the rest fits into the downtime target"};
  if (rounds_ >= rounds_max) return give_up_rounds("as many rounds as are allowed");

  bool shrinks = !dirty_before_ || static_cast<double>(dirty_bytes) <
                                       shrink_max * static_cast<double>(*dirty_before_);
  bool shrank_first = dirty_before_ || static_cast<double>(dirty_bytes) <
                                           shrink_max * static_cast<double>(round.bytes);
  dirty_before_ = dirty_bytes;
  // One bad round may be noise (a burst of writes, a busy link); two in a row are a fact.
  not_shrinking_ = shrinks && shrank_first ? 0 : not_shrinking_ + 1;
  if (not_shrinking_ >= 2)
    return give_up_rounds("the program writes about as fast as pages can be sent");
  return {Next::another_round, "rounds still shrink"};
}

}  // namespace godwit::migrate
