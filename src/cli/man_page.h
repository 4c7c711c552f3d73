// Manual pages out of the definition of the command line: one source for --help and man(1).
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace CLI {
class App;
}

namespace godwit::cli {

// (file name, roff): godwit.1, and one page for each command.
std::vector<std::pair<std::string, std::string>> man_pages(const CLI::App& app);

}  // namespace godwit::cli
