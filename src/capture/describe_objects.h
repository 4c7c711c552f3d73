// Descriptors of things that live in the kernel only: eventfd, timerfd, signalfd, epoll, pidfd.
#pragma once

#include <sys/types.h>

#include <string>

#include "image/image.pb.h"
#include "sys/proc.h"

namespace godwit::capture {

// What a /proc link of such a descriptor reads; image::OpenFile::REGULAR: it is none of them.
image::OpenFile::Kind object_kind(const std::string& link);

// Everything but the watches of an epoll instance. `copy` is of the same open file description.
Result<void> describe_object(int copy, const sys::FdInfo& info, image::OpenFile& file);

// The watches of epoll instance `fd`. Preconditions: the process stands still.
Result<void> describe_watches(pid_t pid, int fd, const sys::FdInfo& info, image::OpenFile& file);

}  // namespace godwit::capture
