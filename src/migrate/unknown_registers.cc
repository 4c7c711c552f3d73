#include "migrate/unknown_registers.h"

#include <fmt/ranges.h>

#include "capture/signal_frames.h"
#include "sys/cpuid.h"

namespace godwit::migrate {

Result<std::vector<std::string>> drop_unknown_registers(const capture::FrozenTree& tree,
                                                        const std::string& began_with,
                                                        const std::string& target,
                                                        image::Capsule& image) {
  std::vector<std::string> reasons;
  if (began_with.empty()) return reasons;
  const std::uint32_t bytes_there = TRY(sys::signal_xsave_bytes(target));
  if (bytes_there < TRY(sys::signal_xsave_bytes(began_with)))
    reasons = TRY(capture::large_signal_frames(tree, image, bytes_there));
  for (image::Process& process : *image.mutable_processes()) {
    for (image::Thread& thread : *process.mutable_threads()) {
      const std::vector<std::string> lost =
          TRY(sys::drop_unknown_xstate(*thread.mutable_xstate(), began_with, target));
      if (!lost.empty())
        reasons.push_back(
            fmt::format("thread {} has something in registers that the target lacks: {}",
                        thread.tid(), fmt::join(lost, ", ")));
    }
  }
  return reasons;
}

}  // namespace godwit::migrate
