#include <string>
#include <vector>

#include "cli/command_line.h"

int main(int argc, char** argv) {
  godwit::cli::CommandLine line;
  int code = 0;
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!godwit::cli::parse_command_line(arguments, line, code)) return code;
  return line.command();
}
