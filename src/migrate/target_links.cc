#include "migrate/target_links.h"

#include <unistd.h>

#include <cerrno>
#include <iterator>
#include <utility>

#include "base/log.h"
#include "migrate/clock_probe.h"
#include "migrate/limits.h"
#include "sys/namespaces.h"

namespace godwit::migrate {
namespace {

Error failure(const wire::Failed& failed) {
  return Error(failed.refused() ? Errc::refused : Errc::peer_lost,
               fmt::format("the target: {}", failed.reason()));
}

}  // namespace

Result<void> TargetLinks::connect(const wire::SourceOrder& order) {
  transport::Token token = TRY(transport::token_from_bytes(order.token()));
  std::uint32_t streams = order.streams() > 0 ? order.streams() : default_streams;
  std::vector<transport::LinkName> names = {{transport::LinkKind::control, 0},
                                            {transport::LinkKind::urgent, 0}};
  for (std::uint32_t i = 0; i < streams; ++i) names.push_back({transport::LinkKind::data, i});
  std::vector<transport::Link> links = TRY(transport::connect_all(
      order.target_address(), static_cast<std::uint16_t>(order.target_port()), token, names, {}));
  control_ = std::move(links[0]);
  urgent_ = std::move(links[1]);
  data_.assign(std::make_move_iterator(links.begin() + 2), std::make_move_iterator(links.end()));
  for (const transport::Link& link : data_) streams_.push_back(link.fd());
  return {};
}

Result<void> TargetLinks::expect(wire::ToSource& reply, wire::ToSource::MessageCase which,
                                 std::int64_t timeout_ms) {
  TRY(control_.receive(reply, timeout_ms).with("target"));
  if (reply.has_failed()) return failure(reply.failed());
  if (reply.message_case() != which)
    return make_error(Errc::invalid, "the target sent message {}, expected {}",
                      static_cast<int>(reply.message_case()), static_cast<int>(which));
  return {};
}

Error TargetLinks::hear_out(Error error) {
  const int code = error.sys_errno();
  const bool broken = error.code() == Errc::peer_lost || code == EPIPE || code == ECONNRESET;
  while (broken && control_.valid()) {
    wire::ToSource last;
    if (!control_.receive(last, last_words_ms_max).ok()) break;
    if (last.has_failed()) return failure(last.failed());
  }
  return error;
}

void TargetLinks::say_that_we_stay(const Error& error) {
  if (!control_.valid() || error.code() == Errc::peer_lost) return;
  wire::ToTarget message;
  message.mutable_abort()->set_reason(error.what());
  if (Result<void> sent = control_.send(message, told_ms_max); !sent.ok())
    LOG(info, "target not told: {}", sent.error().what());
}

Result<void> TargetLinks::compare_clocks(pid_t pid) {
  sys::TimeOffsets theirs = TRY(sys::time_offsets_of(pid));
  sys::TimeOffsets ours = TRY(sys::time_offsets_of(::getpid()));
  const ClockDifferences ahead = TRY(probe_clocks([this]() -> Result<wire::ClockReply> {
    wire::ToTarget question;
    question.mutable_clock_probe();
    TRY(control_.send(question));
    wire::ToSource reply;
    TRY(expect(reply, wire::ToSource::kClockReply, prepare_ms_max));
    return reply.clock_reply();
  }));
  wire::ToTarget message;
  message.mutable_clocks()->set_monotonic_ns(ahead.monotonic.ns() + theirs.monotonic_ns -
                                             ours.monotonic_ns);
  message.mutable_clocks()->set_boottime_ns(ahead.boottime.ns() + theirs.boottime_ns -
                                            ours.boottime_ns);
  return control_.send(message);
}

}  // namespace godwit::migrate
