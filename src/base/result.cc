#include "base/result.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace godwit {

std::string_view errc_name(Errc code) {
  switch (code) {
    case Errc::os: return "os";
    case Errc::tracee_gone: return "tracee_gone";
    case Errc::refused: return "refused";
    case Errc::not_found: return "not_found";
    case Errc::permission: return "permission";
    case Errc::invalid: return "invalid";
    case Errc::unsupported: return "unsupported";
    case Errc::peer_lost: return "peer_lost";
    case Errc::timeout: return "timeout";
    case Errc::in_doubt: return "in_doubt";
    case Errc::cancelled: return "cancelled";
    case Errc::internal: return "internal";
    case Errc::busy: return "busy";
  }
  return "unknown";
}

Error os_error(std::string_view call) { return os_error(call, errno); }

Error os_error(std::string_view call, int sys_errno) {
  return Error(Errc::os, fmt::format("{}: {}", call, std::strerror(sys_errno)), sys_errno);
}

void invariant_failed(const char* file, int line, const char* condition,
                      const std::string& detail) {
  std::fprintf(stderr, "%s:%d: invariant broken: %s%s%s\n", file, line, condition,
               detail.empty() ? "" : ": ", detail.c_str());
  std::abort();
}

}  // namespace godwit
