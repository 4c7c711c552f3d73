// The command line: what there is, its help, and what was asked for. Nothing is done here.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/local_commands.h"

namespace godwit::cli {

struct CommandLine {
  Options options;
  LocalOptions local;
  std::function<int()> command;  // Refers to the two above: don't move the object afterwards.
};

// Fills `line` and returns true, or prints help or an error and gives the exit code.
bool parse_command_line(const std::vector<std::string>& arguments, CommandLine& line, int& code);

}  // namespace godwit::cli
