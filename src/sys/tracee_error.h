// Errors of calls about a process or thread that may have ended meanwhile.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/result.h"

namespace godwit::sys {

// From errno: Errc::tracee_gone for ESRCH, else Errc::os.
Error tracee_error(const std::string& call);
Error tracee_error(const char* call, pid_t tid);

}  // namespace godwit::sys
