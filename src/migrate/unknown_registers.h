// What a program that began on a lesser processor has got here without knowing.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "capture/freeze.h"
#include "image/image.pb.h"

namespace godwit::migrate {

// Takes out of `image` what the program can't know of: registers that its first processor
// (`began_with`, empty: unknown, then nothing is done) hadn't and the target hasn't. The answer:
// reasons against the move, where the program holds something that the target has no place for.
Result<std::vector<std::string>> drop_unknown_registers(const capture::FrozenTree& tree,
                                                        const std::string& began_with,
                                                        const std::string& target,
                                                        image::Capsule& image);

}  // namespace godwit::migrate
