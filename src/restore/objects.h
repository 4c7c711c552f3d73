// Things that live in the kernel only: eventfd, timerfd, signalfd, epoll.
#pragma once

#include "base/unique_fd.h"
#include "image/image.pb.h"

namespace godwit::restore {

// `frozen_ns`: how long ago the image's times were read. An epoll instance watches nothing yet:
// only the process itself can add its descriptors (a signalfd's waiters are those of whoever adds
// it).
Result<UniqueFd> make_object(const image::OpenFile& file, const image::Clocks& clocks,
                             std::int64_t frozen_ns);

}  // namespace godwit::restore
