// Which processes of the tree aren't those that were looked at before the migration began: they
// have come since, or have executed another program.
#pragma once

#include <sys/types.h>

#include <map>
#include <set>
#include <span>

#include "base/result.h"
#include "sys/exec_watch.h"

namespace godwit::migrate {

class ExecWatches {
 public:
  // Before they are looked at. Numbers are this node's. What can't be watched, in the middle of an
  // execve or of its end, counts as fresh.
  void add(std::span<const pid_t> pids);
  std::set<pid_t> fresh(std::span<const pid_t> pids) const;

 private:
  std::map<pid_t, sys::ExecWatch> watches_;
};

}  // namespace godwit::migrate
