// /proc/PID/fdinfo tells nearly all of it. What it doesn't:
// - A timerfd with an interval that has expired is armed again only when somebody reads it or asks
//   for its time. We ask, through a copy: expiries are counted as a read would count them, and then
//   fdinfo shows the time to the next one. The program can't tell.
// - An epoll instance watches open files under the numbers that they had when they were added. A
//   file whose number was closed or used again since then, while a duplicate kept it, would have to
//   be added under a number that now means something else: refused by name. kcmp(2) tells.
// - Whether an edge was reported already. On the target everything that is ready counts as news: an
//   edge can be seen twice, none is missed.

#include "capture/describe_objects.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "sys/pidfd.h"

namespace godwit::capture {
namespace {

constexpr std::uint32_t one_shot = EPOLLONESHOT;
// What isn't an event to wait for: the rest of a watch that one-shot has disarmed.
constexpr std::uint32_t modes = EPOLLONESHOT | EPOLLET | EPOLLWAKEUP | EPOLLEXCLUSIVE;

Result<std::uint64_t> number(const sys::FdInfo& info, const char* name, int base) {
  const std::string* text = info.find(name);
  if (text == nullptr)
    return make_error(Errc::unsupported, "this kernel doesn't tell its \"{}\"", name);
  char* end = nullptr;
  const std::uint64_t value = std::strtoull(text->c_str(), &end, base);
  if (end == text->c_str()) return make_error(Errc::invalid, "fdinfo: {}: \"{}\"", name, *text);
  return value;
}

Result<void> describe_eventfd(const sys::FdInfo& info, image::Eventfd& out) {
  out.set_count(TRY(number(info, "eventfd-count", 16)));
  // From 6.5; before it nothing tells but a read, which takes from the program.
  out.set_semaphore(TRY(number(info, "eventfd-semaphore", 10)) != 0);
  return {};
}

// A timer that is due shows no time left, as one that isn't set does, until its interrupt has come:
// microseconds later, or more where a hypervisor holds the processor. One that has no interval and
// isn't set is common, so little is waited for it.
constexpr std::int64_t due_once_ns_max = 100'000, due_periodic_ns_max = 20'000'000;

Result<void> describe_timerfd(int copy, image::Timerfd& out) {
  auto ns = [](const timespec& t) { return t.tv_sec * 1'000'000'000LL + t.tv_nsec; };
  const std::int64_t began_ns = monotonic_ns();
  while (true) {
    itimerspec now{};
    if (::timerfd_gettime(copy, &now) != 0) return os_error("timerfd_gettime");
    // As it is after the question, which counts what is due.
    const sys::FdInfo info = TRY(sys::read_fdinfo(::getpid(), copy));
    out.set_value_ns(ns(now.it_value));
    out.set_interval_ns(ns(now.it_interval));
    out.set_clock(static_cast<std::int32_t>(TRY(number(info, "clockid", 10))));
    out.set_ticks(TRY(number(info, "ticks", 10)));
    out.set_flags(static_cast<std::uint32_t>(TRY(number(info, "settime flags", 8))));
    if (out.value_ns() != 0) return {};
    const bool periodic = out.interval_ns() != 0;
    if (!periodic && out.ticks() != 0) return {};  // It has expired.
    if (monotonic_ns() - began_ns > (periodic ? due_periodic_ns_max : due_once_ns_max)) return {};
  }
}

Result<void> describe_pidfd(const sys::FdInfo& info, image::OpenFile& file) {
  if ((info.flags & O_EXCL) != 0)
    return make_error(Errc::refused, "it is a pidfd of a thread (PIDFD_THREAD), which can't move");
  const std::string* pids = info.find("NSpid");
  // The last one is that of the innermost namespace, the capsule's.
  const std::size_t last = pids == nullptr ? std::string::npos : pids->find_last_of(" \t");
  const int pid =
      pids == nullptr ? -1 : std::atoi(pids->c_str() + (last == std::string::npos ? 0 : last + 1));
  if (pid <= 0)
    return make_error(Errc::refused,
                      "it is a pidfd of a process that has ended or is outside of the capsule, "
                      "which can't move");
  file.set_pid(pid);
  return {};
}

}  // namespace

image::OpenFile::Kind object_kind(const std::string& link) {
  if (link == "anon_inode:[eventfd]") return image::OpenFile::EVENTFD;
  if (link == "anon_inode:[timerfd]") return image::OpenFile::TIMERFD;
  if (link == "anon_inode:[signalfd]") return image::OpenFile::SIGNALFD;
  if (link == "anon_inode:[eventpoll]") return image::OpenFile::EPOLL;
  // Its file system has changed with the kernel.
  if (link == "anon_inode:[pidfd]" || link.starts_with("pidfd:")) return image::OpenFile::PIDFD;
  return image::OpenFile::REGULAR;
}

Result<void> describe_object(int copy, const sys::FdInfo& info, image::OpenFile& file) {
  switch (file.kind()) {
    case image::OpenFile::EVENTFD:
      return describe_eventfd(info, *file.mutable_eventfd());
    case image::OpenFile::TIMERFD:
      return describe_timerfd(copy, *file.mutable_timerfd());
    case image::OpenFile::SIGNALFD:
      file.set_signalfd_mask(TRY(number(info, "sigmask", 16)));
      return {};
    case image::OpenFile::PIDFD:
      return describe_pidfd(info, file);
    default:
      return {};
  }
}

Result<void> describe_watches(pid_t pid, int fd, const sys::FdInfo& info, image::OpenFile& file) {
  for (const auto& [name, text] : info.lines) {
    if (name != "tfd") continue;
    int watched = -1;
    unsigned events = 0;
    unsigned long long data = 0;
    // "tfd:        5 events:       19 data: 1122334455667788  pos:0 ino:4 sdev:10"
    if (std::sscanf(text.c_str(), "%d events: %x data: %llx", &watched, &events, &data) != 3)
      return make_error(Errc::invalid, "fdinfo of descriptor {}: tfd: \"{}\"", fd, text);
    // Two files that were added under one number: at most one of them can have it now.
    const sys::EpollSlot slot{static_cast<std::uint32_t>(fd), static_cast<std::uint32_t>(watched),
                              0};
    Result<int> same =
        sys::kcmp(pid, pid, sys::KcmpType::epoll_slot, static_cast<std::uint64_t>(watched),
                  reinterpret_cast<std::uint64_t>(&slot));
    if (!same.ok() && same.error().sys_errno() != EBADF) return std::move(same).error();
    int count = 0;
    for (const image::EpollWatch& other : file.watches()) count += other.fd() == watched;
    if (!same.ok() || *same != 0 || count != 0)
      return make_error(Errc::refused,
                        "epoll instance {} watches an open file whose descriptor {} was closed, "
                        "which can't move yet",
                        fd, watched);
    if ((events & one_shot) && (events & ~modes) == 0)
      return make_error(Errc::refused,
                        "epoll instance {} has watched descriptor {} once and waits to be told to "
                        "do it again (EPOLLONESHOT), which can't move yet",
                        fd, watched);
    image::EpollWatch& watch = *file.add_watches();
    watch.set_fd(watched);
    watch.set_events(events);
    watch.set_data(data);
  }
  return {};
}

}  // namespace godwit::capture
