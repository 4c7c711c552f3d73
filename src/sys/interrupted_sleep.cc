#include "sys/interrupted_sleep.h"

#include <fmt/format.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/io.h"
#include "sys/proc.h"

namespace godwit::sys {

bool InterruptedSleep::explains(const Regs& regs) const {
  const std::uint64_t now[6] = {regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9};
  return regs.orig_rax == SYS_restart_syscall && std::memcmp(args, now, sizeof args) == 0;
}

bool InterruptedSleep::lasts(std::uint64_t voluntary_switches_now, const Regs& regs) const {
  return voluntary_switches_now == voluntary_switches + 1 && explains(regs);
}

std::string to_text(std::span<const InterruptedSleep> sleeps) {
  std::string text;
  for (const InterruptedSleep& s : sleeps) {
    text +=
        fmt::format("{} {} {} {} {} {} {} {} {} {}\n", s.tid_inside, s.nr, s.args[0], s.args[1],
                    s.args[2], s.args[3], s.args[4], s.args[5], s.ends_at_ns, s.voluntary_switches);
  }
  return text;
}

std::vector<InterruptedSleep> interrupted_sleeps_from_text(std::string_view text) {
  std::vector<InterruptedSleep> sleeps;
  while (!text.empty()) {
    const std::string line(text.substr(0, text.find('\n')));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    InterruptedSleep s;
    auto& a = s.args;
    constexpr const char* format = "%d %" SCNd64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
                                   " %" SCNu64 " %" SCNu64 " %" SCNd64 " %" SCNu64;
    constexpr int fields = 10;
    if (std::sscanf(line.c_str(), format, &s.tid_inside, &s.nr, &a[0], &a[1], &a[2], &a[3], &a[4],
                    &a[5], &s.ends_at_ns, &s.voluntary_switches) == fields)
      sleeps.push_back(s);
  }
  return sleeps;
}

Result<std::uint64_t> read_voluntary_switches(pid_t pid, pid_t tid) {
  const std::string status = TRY(read_file(proc_path(pid, tid, "status")));
  constexpr std::string_view key = "\nvoluntary_ctxt_switches:";
  const std::size_t at = status.find(key);
  if (at == std::string::npos)
    return make_error(Errc::unsupported, "/proc/{}/status has no {}", tid, key.substr(1));
  return std::strtoull(status.c_str() + at + key.size(), nullptr, 10);
}

}  // namespace godwit::sys
