#include "sys/namespaces.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/socket.h>

#include <cstdio>
#include <thread>

#include "base/io.h"

namespace godwit::sys {

Result<UniqueFd> open_namespace(pid_t pid, const std::string& kind) {
  return open_fd(fmt::format("/proc/{}/ns/{}", pid, kind), O_RDONLY);
}

Result<UniqueFd> socket_in_netns(int netns, int family, int type, int protocol) {
  Result<UniqueFd> made = Error(Errc::internal, "no socket was made");
  std::thread inside([&] {
    if (::setns(netns, CLONE_NEWNET) != 0) {
      made = os_error(fmt::format("setns({}, CLONE_NEWNET)", netns));
      return;
    }
    int fd = ::socket(family, type | SOCK_CLOEXEC, protocol);
    if (fd < 0) {
      made = os_error(fmt::format("socket({}, {}, {})", family, type, protocol));
    } else {
      made = UniqueFd(fd);
    }
  });
  inside.join();
  return made;
}

Result<TimeOffsets> time_offsets_of(pid_t pid) {
  std::string path = fmt::format("/proc/{}/timens_offsets", pid);
  std::string text = TRY(read_file(path));
  long long mono_s = 0, mono_ns = 0, boot_s = 0, boot_ns = 0;
  if (std::sscanf(text.c_str(), "monotonic %lld %lld boottime %lld %lld", &mono_s, &mono_ns,
                  &boot_s, &boot_ns) != 4)
    return make_error(Errc::invalid, "{}: \"{}\"", path, text);
  return TimeOffsets{mono_s * 1'000'000'000 + mono_ns, boot_s * 1'000'000'000 + boot_ns};
}

Result<pid_t> pid_of_pidfd(int pidfd) {
  std::string path = fmt::format("/proc/self/fdinfo/{}", pidfd);
  std::string text = TRY(read_file(path));
  std::size_t at = text.find("\nPid:");
  if (at == std::string::npos) return make_error(Errc::invalid, "{}: not a pidfd", path);
  int pid = 0;
  if (std::sscanf(text.c_str() + at, "\nPid: %d", &pid) != 1)
    return make_error(Errc::invalid, "{}: \"{}\"", path, text);
  if (pid <= 0) return make_error(Errc::tracee_gone, "pidfd {}: no process any more", pidfd);
  return pid;
}

}  // namespace godwit::sys
