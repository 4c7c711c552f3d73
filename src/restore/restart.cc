#include "restore/restart.h"

#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>

#include "base/clock.h"

namespace godwit::restore {
namespace {

constexpr int places_max = 16;  // Capture needs the rest of the zeros for its code.
constexpr std::uint64_t place_gap = 64;
constexpr int system_call_bytes = 2;  // syscall is 0f 05.

// Calls that end in -ERESTART_RESTARTBLOCK when they are interrupted with a relative timeout.
bool has_restart_block(const image::Restart& r) {
  switch (r.nr()) {
    case SYS_nanosleep:
    case SYS_clock_nanosleep:
    case SYS_poll:
    case SYS_futex:
      return true;
    default:
      return false;
  }
}

// Calls whose timeout the kernel itself overwrites by the time left.
bool writes_time_left(const image::Restart& r) {
  return r.nr() == SYS_select || r.nr() == SYS_pselect6 || r.nr() == SYS_ppoll;
}

timespec to_timespec(std::int64_t ns) { return {ns / second_ns, ns % second_ns}; }

std::int64_t to_milliseconds(std::int64_t ns) {
  return (ns + 999'999) / 1'000'000;
}  // Never early.

std::uint64_t& argument(sys::Regs& regs, unsigned index) {
  unsigned long long* const all[] = {&regs.rdi, &regs.rsi, &regs.rdx,
                                     &regs.r10, &regs.r8,  &regs.r9};
  static_assert(sizeof(unsigned long long) == sizeof(std::uint64_t));
  return *reinterpret_cast<std::uint64_t*>(all[index]);
}

void begin_again(sys::Regs& regs, const image::Restart& r) {
  regs.rip -= system_call_bytes;
  regs.rax = static_cast<std::uint64_t>(r.nr());
  regs.orig_rax = ~0ull;
}

std::span<const std::byte> bytes_of(const auto& value) {
  return std::as_bytes(std::span(&value, 1));
}

}  // namespace

std::int64_t Restarter::left_ns(const image::Restart& restart) const {
  return std::max<std::int64_t>(0, restart.remaining_ns() - frozen_ns_);
}

Result<void> Restarter::apply(std::span<Item> items) {
  std::vector<Item*> blocks;
  for (Item& item : items) {
    const image::Restart& r = item.thread->restart();
    if (r.timeout() == image::Restart::NONE) continue;
    if (r.args_size() != 6 || r.timeout_arg() > 5) {
      return make_error(Errc::invalid,
                        "thread {}: restart of call {} with {} arguments, timeout in {}",
                        item.thread->tid(), r.nr(), r.args_size(), r.timeout_arg());
    }
    if (has_restart_block(r)) {
      blocks.push_back(&item);
    } else {
      TRY(change_argument(item));
    }
  }
  for (unsigned lane = 1; const Item* item : blocks) TRY(enter_call(*item, lane++));
  for (const Item* item : blocks) TRY(interrupt_call(*item));
  for (Item* item : blocks) TRY(take_result(*item));
  return {};
}

Result<void> Restarter::change_argument(const Item& item) {
  const image::Thread& thread = *item.thread;
  const image::Restart& r = thread.restart();
  sys::Regs& regs = *item.regs;
  std::int64_t left = left_ns(r);
  std::uint64_t& timeout = argument(regs, r.timeout_arg());
  timespec time = to_timespec(left);
  switch (r.timeout()) {
    case image::Restart::MILLISECONDS:
      timeout = static_cast<std::uint64_t>(to_milliseconds(left));
      break;
    case image::Restart::TIMEVAL: {
      timeval value{time.tv_sec, (time.tv_nsec + 999) / 1000};
      if (!writes_time_left(r)) {
        return make_error(Errc::unsupported, "thread {}: restart of call {}", thread.tid(), r.nr());
      }
      TRY(skeleton_.poke(r.args(static_cast<int>(r.timeout_arg())), bytes_of(value)));
      break;
    }
    case image::Restart::TIMESPEC:
      if (writes_time_left(r)) {
        TRY(skeleton_.poke(r.args(static_cast<int>(r.timeout_arg())), bytes_of(time)));
      } else {
        timeout = TRY(place_behind_vdso(time));
      }
      break;
    default:
      return make_error(Errc::unsupported, "thread {}: restart kind {}", thread.tid(),
                        static_cast<int>(r.timeout()));
  }
  begin_again(regs, r);
  return {};
}

Result<void> Restarter::enter_call(const Item& item, unsigned lane) {
  const image::Restart& r = item.thread->restart();
  std::int64_t left = left_ns(r);
  Batch b = skeleton_.batch(lane);
  std::uint64_t args[6];
  for (int i = 0; i < 6; ++i) args[i] = r.args(i);
  args[r.timeout_arg()] = r.timeout() == image::Restart::MILLISECONDS
                              ? static_cast<std::uint64_t>(to_milliseconds(left))
                              : b.put_value(to_timespec(left));
  b.call(r.nr(), "interrupted call", {args[0], args[1], args[2], args[3], args[4], args[5]});
  sys::Regs start = TRY(sys::ptrace_get_regs(item.node_tid));
  start.rip = b.code();
  start.rbx = b.first_call_remote();
  start.r12 = start.rbx + sizeof(RemoteCall);
  start.orig_rax = ~0ull;
  TRY(sys::ptrace_set_regs(item.node_tid, start));
  return sys::ptrace_syscall(item.node_tid, 0);
}

Result<void> Restarter::interrupt_call(const Item& item) {
  sys::Stop entry = TRY(sys::wait_stop(item.node_tid, sys::stop_limit_us));
  if (entry.exited()) return make_error(Errc::tracee_gone, "thread {} ended", item.thread->tid());
  if (!entry.at_syscall()) {
    return make_error(Errc::internal, "thread {}: status {:#x} before its interrupted call",
                      item.thread->tid(), entry.status);
  }
  // Pending before the call begins: it sets itself up, finds the interrupt, and comes back.
  TRY(sys::ptrace_interrupt(item.node_tid));
  return sys::ptrace_cont(item.node_tid, 0);
}

Result<void> Restarter::take_result(Item& item) {
  const image::Thread& thread = *item.thread;
  sys::Stop after = TRY(sys::wait_stop(item.node_tid, sys::stop_limit_us));
  if (after.exited()) return make_error(Errc::tracee_gone, "thread {} ended", thread.tid());
  sys::Regs now = TRY(sys::ptrace_get_regs(item.node_tid));
  auto result = static_cast<std::int64_t>(now.rax);
  if (after.event() != PTRACE_EVENT_STOP) {
    return make_error(Errc::internal, "thread {}: status {:#x} after its interrupted call",
                      thread.tid(), after.status);
  }
  item.regs->rax = now.rax;
  if (result == sys::err_restart_restartblock) {
    item.regs->orig_rax = static_cast<std::uint64_t>(thread.restart().nr());
    item.ends_at_ns =
        monotonic_ns() + left_ns(thread.restart());  // Begun before now: not too early.
  } else if (result > sys::err_restartsys) {
    item.regs->orig_rax =
        ~0ull;  // It was over, by its time or because what it waited for is there.
  } else {
    return make_error(Errc::unsupported, "thread {}: call {} can't be resumed (result {})",
                      thread.tid(), thread.restart().nr(), result);
  }
  return {};
}

Result<std::uint64_t> Restarter::place_behind_vdso(const timespec& value) {
  if (behind_vdso_ == 0) {
    const Skeleton::Vdso& vdso = skeleton_.vdso();
    std::vector<char> page(4096);
    std::uint64_t last = vdso.end - page.size();
    if (pread(skeleton_.mem_fd(), page.data(), page.size(), static_cast<off_t>(last)) != 4096) {
      return os_error("pread(vdso)");
    }
    const std::size_t free_end = sys::before_vdso_stubs(std::as_bytes(std::span(page)));
    std::size_t used = free_end;
    while (used > 0 && page[used - 1] == 0) --used;
    behind_vdso_ = (last + used + place_gap + 15) & ~15ull;
    behind_vdso_end_ = last + free_end;
  }
  std::uint64_t at = behind_vdso_;
  if (placed_ == places_max || at + sizeof value > behind_vdso_end_) {
    return make_error(Errc::unsupported, "more than {} threads wait with a timeout in such calls",
                      placed_);
  }
  TRY(skeleton_.poke(at, bytes_of(value)));
  behind_vdso_ += sizeof value;
  ++placed_;
  return at;
}

std::vector<Touched> memory_touched(const image::Restart& r) {
  if (r.timeout() == image::Restart::NONE || r.args_size() != 6) return {};
  auto arg = [&](int i) { return r.args(i); };
  std::vector<Touched> ranges;
  auto add = [&](std::uint64_t start, std::uint64_t bytes) {
    if (start != 0 && bytes != 0) ranges.push_back({start, start + bytes});
  };
  switch (r.nr()) {
    case SYS_nanosleep:
      add(arg(1), sizeof(timespec));
      break;
    case SYS_clock_nanosleep:
      add(arg(3), sizeof(timespec));
      break;
    case SYS_poll:
      add(arg(0), arg(1) * sizeof(pollfd));
      break;
    case SYS_futex:
      add(arg(0), sizeof(std::uint32_t));
      break;
    default:
      if (writes_time_left(r)) add(arg(static_cast<int>(r.timeout_arg())), sizeof(timespec));
  }
  return ranges;
}

}  // namespace godwit::restore
