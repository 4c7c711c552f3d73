// Whether a process has executed another program since.
//
// exec(2) keeps pid, threads' leader and descriptors, and replaces everything else silently;
// without address randomisation even all addresses may be the same. But a descriptor of
// /proc/PID/mem belongs to the memory that the process had when it was opened: when that is gone,
// reads give nothing.
#pragma once

#include <sys/types.h>

#include "base/result.h"
#include "base/unique_fd.h"
#include "sys/vdso.h"

namespace godwit::sys {

class ExecWatch {
 public:
  static Result<ExecWatch> open(pid_t pid);
  pid_t pid() const { return pid_; }
  bool executed() const;  // Or ended.

 private:
  ExecWatch(pid_t pid, UniqueFd memory, VdsoPlace vdso)
      : pid_(pid), memory_(std::move(memory)), vdso_(vdso) {}
  pid_t pid_;
  UniqueFd memory_;
  VdsoPlace vdso_;
};

}  // namespace godwit::sys
