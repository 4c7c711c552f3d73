#include "migrate/capsule_network.h"

#include <sys/stat.h>

#include "sys/pidfd.h"
#include "sys/proc.h"

namespace godwit::migrate {
namespace {

Result<void> let_sockets_go(pid_t pid) {
  UniqueFd pidfd = TRY(sys::open_pidfd(pid));
  for (int fd : TRY(sys::list_fds(pid))) {
    Result<std::string> link = sys::read_link(sys::proc_path(pid, fmt::format("fd/{}", fd)));
    if (!link.ok() || !link->starts_with("socket:")) continue;
    Result<UniqueFd> copy = sys::pidfd_getfd(pidfd.get(), fd);
    if (!copy.ok() && copy.error().sys_errno() == EBADF) continue;  // It runs, and has closed it.
    TRY(sockets::let_go(TRY(std::move(copy)).get()));
  }
  return {};
}

}  // namespace

Result<void> recover_traffic(capsule::Shell& shell) {
  TRY(shell.gate(true));
  // Nobody holds sockets of a program that could run. And one that runs may own its sockets' locks
  // for as long as it waits for a missing page, which may be as long as it waits for us.
  if (!TRY(shell.tree().is_held())) return {};
  for (pid_t pid : TRY(shell.tree().pids())) {
    Result<void> gone = let_sockets_go(pid);
    if (!gone.ok() && !sys::is_exiting(pid))
      return std::move(gone).with(fmt::format("process {}", pid));
  }
  return {};
}

}  // namespace godwit::migrate
