#include "migrate/exec_watches.h"

namespace godwit::migrate {

void ExecWatches::add(std::span<const pid_t> pids) {
  for (pid_t pid : pids)
    if (Result<sys::ExecWatch> watch = sys::ExecWatch::open(pid); watch.ok())
      watches_.insert_or_assign(pid, std::move(*watch));
}

std::set<pid_t> ExecWatches::fresh(std::span<const pid_t> pids) const {
  std::set<pid_t> fresh;
  for (pid_t pid : pids) {
    auto watch = watches_.find(pid);
    if (watch == watches_.end() || watch->second.executed()) fresh.insert(pid);
  }
  return fresh;
}

}  // namespace godwit::migrate
