#include "migrate/exec_watches.h"

#include "sys/proc.h"

namespace godwit::migrate {

Result<void> ExecWatches::add(std::span<const pid_t> pids) {
  for (pid_t pid : pids) watches_.push_back(TRY(sys::ExecWatch::open(pid)));
  return {};
}

Result<void> ExecWatches::check() const {
  for (const sys::ExecWatch& watch : watches_) {
    if (!watch.executed()) continue;
    Result<sys::ProcStatus> status = sys::read_status(watch.pid());
    if (!status.ok() || status->state == 'Z') continue;  // It has ended: that is another reason.
    return make_error(Errc::refused,
                      "process {} has executed another program ({}) meanwhile: try again",
                      status->ns_tgid.back(), status->name);
  }
  return {};
}

}  // namespace godwit::migrate
