// Signal frames whose registers another processor couldn't take back. See the essay in
// signal_frames.cc.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "capture/freeze.h"
#include "image/image.pb.h"

namespace godwit::capture {

// Reasons against a target whose XSAVE area has `xsave_bytes` without the parts that only a
// permission gives (AMX). Preconditions: `described` is of this tree, as it stands now.
Result<std::vector<std::string>> large_signal_frames(const FrozenTree& tree,
                                                     const image::Capsule& described,
                                                     std::uint32_t xsave_bytes);

}  // namespace godwit::capture
