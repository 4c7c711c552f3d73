#include "restore/objects.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>

#include "base/clock.h"

namespace godwit::restore {
namespace {

constexpr unsigned long tfd_ioc_set_ticks = _IOW('T', 0, std::uint64_t);

timespec to_timespec(std::int64_t ns) { return {ns / 1'000'000'000, ns % 1'000'000'000}; }

Result<UniqueFd> make_eventfd(const image::Eventfd& event) {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | (event.semaphore() ? EFD_SEMAPHORE : 0)));
  if (!fd) return os_error("eventfd");
  const std::uint64_t count = event.count();
  if (count != 0 && ::write(fd.get(), &count, sizeof count) != sizeof count)
    return os_error(fmt::format("write(eventfd, {})", count));
  return fd;
}

// What is left, counted on this clock. Where the interval has gone by meanwhile, so many more
// expiries wait to be read.
Result<UniqueFd> make_timerfd(const image::Timerfd& timer, const image::Clocks& clocks,
                              std::int64_t frozen_ns) {
  UniqueFd fd(::timerfd_create(timer.clock(), TFD_CLOEXEC | TFD_NONBLOCK));
  if (!fd) return os_error(fmt::format("timerfd_create({})", timer.clock()));
  std::uint64_t ticks = timer.ticks();
  if (timer.value_ns() != 0) {
    itimerspec set{};
    set.it_interval = to_timespec(timer.interval_ns());
    // A time of day stays what it was, and is on every node the same.
    const bool absolute =
        (timer.flags() & TFD_TIMER_ABSTIME) &&
        (timer.clock() == CLOCK_REALTIME || timer.clock() == CLOCK_REALTIME_ALARM);
    std::int64_t left = timer.value_ns() - frozen_ns;
    if (absolute) left = clocks.realtime_ns() + timer.value_ns() - realtime_ns();
    if (left <= 0 && timer.interval_ns() > 0) {
      const std::int64_t missed = -left / timer.interval_ns() + 1;
      ticks += static_cast<std::uint64_t>(missed);
      left += missed * timer.interval_ns();
    }
    left = std::max<std::int64_t>(left, 1);
    set.it_value = to_timespec(absolute ? realtime_ns() + left : left);
    const int flags = absolute ? static_cast<int>(timer.flags()) : 0;
    if (::timerfd_settime(fd.get(), flags, &set, nullptr) != 0)
      return os_error(fmt::format("timerfd_settime(clock {}, {} ns)", timer.clock(), left));
  }
  if (ticks != 0 && ::ioctl(fd.get(), tfd_ioc_set_ticks, &ticks) != 0)
    return os_error(fmt::format("ioctl(TFD_IOC_SET_TICKS, {})", ticks));
  return fd;
}

}  // namespace

Result<UniqueFd> make_object(const image::OpenFile& file, const image::Clocks& clocks,
                             std::int64_t frozen_ns) {
  switch (file.kind()) {
    case image::OpenFile::EVENTFD:
      return make_eventfd(file.eventfd());
    case image::OpenFile::TIMERFD:
      return make_timerfd(file.timerfd(), clocks, frozen_ns);
    case image::OpenFile::SIGNALFD: {
      const std::uint64_t mask = file.signalfd_mask();  // As the kernel has it: glibc's is larger.
      UniqueFd fd(static_cast<int>(::syscall(SYS_signalfd4, -1, &mask, sizeof mask, SFD_CLOEXEC)));
      if (!fd) return os_error(fmt::format("signalfd4({:#x})", mask));
      return fd;
    }
    case image::OpenFile::EPOLL: {
      UniqueFd fd(::epoll_create1(EPOLL_CLOEXEC));
      if (!fd) return os_error("epoll_create1");
      return fd;
    }
    default:
      return make_error(Errc::unsupported, "kind {}", static_cast<int>(file.kind()));
  }
}

}  // namespace godwit::restore
