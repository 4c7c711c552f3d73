// What an image may ask for and this restorer can't do: found before anything is built, named.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "image/image.pb.h"

namespace godwit::restore {

constexpr std::size_t siginfo_bytes = 128;  // Of each signal in an image.

// All reasons against, in words. `final`: the image of the freeze; before it, what is read late
// (registers, credentials...) may be missing.
std::vector<std::string> reasons_against(const image::Capsule& capsule, bool final);
// The same as an error.
Result<void> check_supported(const image::Capsule& capsule, bool final);

}  // namespace godwit::restore
