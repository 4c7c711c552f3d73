#pragma once

#include <vector>

#include "image/image.pb.h"
#include "memory/source_memory.h"

namespace godwit::migrate {

// Post-copy: pages that the target's kernel touches while it restores, and those that every thread
// touches with its first instructions; asking for them one by one would be the first thing it does.
std::vector<memory::RoundOptions::Range> touched_at_once(const image::Capsule& image);

}  // namespace godwit::migrate
