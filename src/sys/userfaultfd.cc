#include "sys/userfaultfd.h"

#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace godwit::sys {

Result<UniqueFd> uffd_create(int flags) {
  int fd = static_cast<int>(::syscall(SYS_userfaultfd, flags));
  if (fd < 0) return os_error(fmt::format("userfaultfd({:#x})", flags));
  return UniqueFd(fd);
}

Result<void> uffd_api(int uffd, std::uint64_t features) {
  uffdio_api api{.api = UFFD_API, .features = features, .ioctls = 0};
  if (::ioctl(uffd, UFFDIO_API, &api) != 0) {
    if (errno == EINVAL)
      return make_error(Errc::unsupported, "this kernel's userfaultfd lacks a feature of {:#x}",
                        features);
    return os_error(fmt::format("UFFDIO_API(features={:#x})", features));
  }
  return {};
}

Result<void> uffd_register(int uffd, std::uint64_t start, std::uint64_t end, UffdMode mode) {
  uffdio_register reg{};
  reg.range = {.start = start, .len = end - start};
  reg.mode = mode == UffdMode::missing ? UFFDIO_REGISTER_MODE_MISSING : UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(uffd, UFFDIO_REGISTER, &reg) != 0)
    return os_error(fmt::format("UFFDIO_REGISTER({:#x}-{:#x}, mode={})", start, end, reg.mode));
  return {};
}

Result<void> uffd_unregister(int uffd, std::uint64_t start, std::uint64_t end) {
  uffdio_range range{.start = start, .len = end - start};
  if (::ioctl(uffd, UFFDIO_UNREGISTER, &range) != 0)
    return os_error(fmt::format("UFFDIO_UNREGISTER({:#x}-{:#x})", start, end));
  return {};
}

UffdProgress uffd_copy(int uffd, std::uint64_t to, const void* from, std::uint64_t bytes) {
  uffdio_copy copy{};
  copy.dst = to;
  copy.src = reinterpret_cast<std::uint64_t>(from);
  copy.len = bytes;
  if (::ioctl(uffd, UFFDIO_COPY, &copy) == 0) return {.bytes = bytes, .stopped_by = 0};
  // `copy` holds what was done, or the negated errno when nothing was. After a part the ioctl
  // itself says EAGAIN, whatever stopped it: the caller asks again and hears the reason.
  if (copy.copy > 0) return {.bytes = static_cast<std::uint64_t>(copy.copy), .stopped_by = 0};
  return {.bytes = 0, .stopped_by = errno};
}

UffdProgress uffd_zeropage(int uffd, std::uint64_t to, std::uint64_t bytes) {
  uffdio_zeropage zero{};
  zero.range = {.start = to, .len = bytes};
  if (::ioctl(uffd, UFFDIO_ZEROPAGE, &zero) == 0) return {.bytes = bytes, .stopped_by = 0};
  if (zero.zeropage > 0)
    return {.bytes = static_cast<std::uint64_t>(zero.zeropage), .stopped_by = 0};
  return {.bytes = 0, .stopped_by = errno};
}

void uffd_wake(int uffd, std::uint64_t start, std::uint64_t bytes) {
  uffdio_range range{.start = start, .len = bytes};
  // Can only fail for a range that cannot hold a waiter.
  (void)::ioctl(uffd, UFFDIO_WAKE, &range);
}

Result<std::optional<uffd_msg>> uffd_read(int uffd) {
  uffd_msg message;
  if (!TRY(uffd_read_into(uffd, message))) return std::optional<uffd_msg>();
  return std::optional(message);
}

Result<bool> uffd_read_into(int uffd, uffd_msg& message) {
  while (true) {
    ssize_t n = ::read(uffd, &message, sizeof message);
    if (n == static_cast<ssize_t>(sizeof message)) return true;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return false;
    if (n < 0) return os_error("read(userfaultfd)");
    return make_error(Errc::internal, "read(userfaultfd) gave {} bytes", n);
  }
}

}  // namespace godwit::sys
