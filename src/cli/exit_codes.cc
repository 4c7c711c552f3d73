#include "cli/exit_codes.h"

#include <sys/wait.h>

namespace godwit::cli {

Exit exit_for(const Error& error) {
  switch (error.code()) {
    case Errc::not_found:
      return Exit::not_found;
    case Errc::permission:
      return Exit::permission;
    case Errc::in_doubt:
      return Exit::in_doubt;
    default:
      return Exit::failed;
  }
}

int exit_of_program(int wait_status) {
  if (WIFSIGNALED(wait_status)) return static_cast<int>(Exit::signal_base) + WTERMSIG(wait_status);
  return WEXITSTATUS(wait_status);
}

}  // namespace godwit::cli
