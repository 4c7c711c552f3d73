// userfaultfd(2): resolving another process's page faults, and write-protecting its pages.
//
// The headers of Debian 12 are those of 6.1: what came later has constants of our own here.
//   WP_ASYNC (6.7): the kernel resolves write-protect faults itself and only clears the bit; so
//     nobody waits for us, and the bit tells what was written (sys/pagemap.h).
//   WP_UNPOPULATED (6.4): also absent pages can carry the bit.
// The descriptor belongs to the address space it was made in: it was made there by an injected
// call and fetched by pidfd_getfd(2). All ioctls but UFFDIO_MOVE may be called from here.
#pragma once

#include <linux/userfaultfd.h>

#include <cstdint>
#include <optional>

#include "base/result.h"
#include "base/unique_fd.h"

namespace godwit::sys {

inline constexpr std::uint64_t uffd_feature_wp_unpopulated = 1ull << 13;
inline constexpr std::uint64_t uffd_feature_wp_async = 1ull << 15;

// Of the calling process. Tests; everything real injects the call.
Result<UniqueFd> uffd_create(int flags);

// The handshake; once per descriptor. Errc::unsupported when the kernel lacks a feature.
Result<void> uffd_api(int uffd, std::uint64_t features);

enum class UffdMode { missing, write_protect };
// [start, end): all mappings in it, which must all allow it. Errno stays in the error: EBUSY (the
// program has a userfaultfd of its own there), EINVAL (vdso, device), ENOMEM (nothing mapped).
Result<void> uffd_register(int uffd, std::uint64_t start, std::uint64_t end, UffdMode mode);
Result<void> uffd_unregister(int uffd, std::uint64_t start, std::uint64_t end);

// Fills absent pages at `to` and wakes who waits. Returns the bytes done, which are all of them
// unless `stopped_by` is set: EEXIST (the next page is there already), EAGAIN (the mappings are
// changing: read events, try again), ENOENT (not mapped or not registered), ESRCH (exited), ...
struct UffdProgress {
  std::uint64_t bytes = 0;
  int stopped_by = 0;  // errno
};
UffdProgress uffd_copy(int uffd, std::uint64_t to, const void* from, std::uint64_t bytes);
UffdProgress uffd_zeropage(int uffd, std::uint64_t to, std::uint64_t bytes);
void uffd_wake(int uffd, std::uint64_t start, std::uint64_t bytes);

// The next event; none when there is none now (the descriptor must be non-blocking).
Result<std::optional<uffd_msg>> uffd_read(int uffd);
// The same into memory of the caller's, by the kernel itself. False: there is none now.
Result<bool> uffd_read_into(int uffd, uffd_msg& message);

}  // namespace godwit::sys
