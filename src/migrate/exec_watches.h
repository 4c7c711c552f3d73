// Whether a process of the tree has executed another program since the migration began: what was
// sent then is of the old program, in memory that looks like the new one's.
#pragma once

#include <sys/types.h>

#include <span>
#include <vector>

#include "base/result.h"
#include "sys/exec_watch.h"

namespace godwit::migrate {

class ExecWatches {
 public:
  Result<void> add(std::span<const pid_t> pids);
  Result<void> check() const;  // Errc::refused: one has.

 private:
  std::vector<sys::ExecWatch> watches_;
};

}  // namespace godwit::migrate
