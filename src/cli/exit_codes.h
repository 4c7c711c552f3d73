// What `godwit` exits with. One table: the code, its documentation and `godwit help exit-codes`.
#pragma once

#include <array>

#include "base/result.h"

namespace godwit::cli {

enum class Exit : int {
  ok = 0,
  failed = 1,
  usage = 2,
  no_daemon = 3,
  not_found = 4,
  permission = 5,
  in_doubt = 6,
  lost = 7,
  timeout = 124,
  run_failed = 125,
  not_executable = 126,
  no_program = 127,
  signal_base = 128,
};

struct ExitCode {
  Exit code;
  const char* meaning;
};

inline constexpr std::array<ExitCode, 13> exit_codes{{
    {Exit::ok, "done; migrate: the capsule runs on the target"},
    {Exit::failed, "refused or failed, and nothing is lost; the reason is printed"},
    {Exit::usage, "the command line is wrong"},
    {Exit::no_daemon, "no godwitd answers at the socket"},
    {Exit::not_found, "no such capsule or node, or the capsule is another user's"},
    {Exit::permission, "only root, or only the owner, may do this"},
    {Exit::in_doubt, "it isn't known yet on which node the capsule goes on; it runs on none now"},
    {Exit::lost, "the program is lost (a node died that held what it needed)"},
    {Exit::timeout, "wait --timeout: it hasn't ended yet"},
    {Exit::run_failed, "run, attach, wait: godwit failed, not the program"},
    {Exit::not_executable, "run: the program can't be executed"},
    {Exit::no_program, "run: there is no such program"},
    {Exit::signal_base, "+ N: run, attach, wait: the program was ended by signal N"},
}};

// For every command but run, attach and wait, where the program's own code passes through.
Exit exit_for(const Error& error);
// Of a program, from waitpid's status.
int exit_of_program(int wait_status);

}  // namespace godwit::cli
