#include "sys/tracee_error.h"

#include <cerrno>

namespace godwit::sys {

Error tracee_error(const std::string& call) {
  const int saved = errno;
  Error error = os_error(call, saved);
  if (saved != ESRCH) return error;
  return Error(Errc::tracee_gone, error.what(), saved);
}

Error tracee_error(const char* call, pid_t tid) {
  const int saved = errno;
  std::string text = fmt::format("{}(tid={})", call, tid);
  errno = saved;
  return tracee_error(text);
}

}  // namespace godwit::sys
